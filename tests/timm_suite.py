"""pytest plugin: point timm's own, unmodified tests/test_models.py at chosen model families.

    pytest -p timm_suite <sdist>/tests/test_models.py

Environment:
    TIMM_SUITE_IMPORT   comma separated modules to import first (their import registers the models)
    TIMM_SUITE_MODELS   comma separated arch globs to keep, e.g. "vmamba_*,vim_*"
    TIMM_SUITE_TOKENS   arch globs whose forward_features() returns tokens (B, L, C): checked by
                        timm's "non_std" config test instead of the 4D one
"""
import fnmatch
import importlib
import os

import pytest
import timm


def _globs(name, default=""):
    return [g for g in os.environ.get(name, default).split(",") if g]


for _module in _globs("TIMM_SUITE_IMPORT", "vmamba"):
    importlib.import_module(_module)

MODELS = _globs("TIMM_SUITE_MODELS")
TOKENS = _globs("TIMM_SUITE_TOKENS")
_list_models = timm.list_models


def _ours(name):
    arch = name.split(".", 1)[0]
    return any(fnmatch.fnmatchcase(arch, g) for g in MODELS)


def _is_non_std_list(value):
    """Say whether this is timm's NON_STD_FILTERS or a list built from it: all carry these two globs."""
    return isinstance(value, (list, tuple)) and {"vit_*", "naflexvit*"} <= set(value)


def list_models(filter="", module="", pretrained=False, exclude_filters="", **kwargs):
    if _is_non_std_list(filter):
        filter = [*filter, *TOKENS]
    if _is_non_std_list(exclude_filters):
        exclude_filters = [*exclude_filters, *TOKENS]
    if isinstance(module, list):  # FEAT_INTER_FILTERS: every module that has forward_intermediates()
        ours = {timm.models._registry._model_to_module[n] for n in _list_models() if _ours(n)}
        module = [*module, *sorted(ours)]
    names = _list_models(filter, module, pretrained, exclude_filters, **kwargs)
    return [n for n in names if _ours(n)]


timm.list_models = list_models
timm.list_pretrained = lambda filter="", exclude_filters="": list_models(
    filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


def pytest_collection_modifyitems(config, items):
    keep, drop = [], []
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("model_name")
        (keep if isinstance(name, str) and _ours(name) else drop).append(item)
    config.hook.pytest_deselected(items=drop)
    items[:] = keep
    if not keep:
        raise pytest.UsageError(f"no timm test selected for {MODELS}")
