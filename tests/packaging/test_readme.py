"""The README says nothing about models and versions that is not so; test_docs.py has its code and commands."""

import re
from pathlib import Path

import pytest
import run_timm_suite
import timm

import vmamba

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def our_models():
    return sorted(name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("vmamba."))


def model_table():
    """{model: (parameters, published accuracy or "")} of the table under the "models" comment."""
    table = README.partition("<!-- models:")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]*) ?\|", table, re.MULTILINE)
    return {name: (int(count.replace(",", "")), accuracy) for name, count, accuracy in rows}


def test_every_model_is_in_the_table():
    assert sorted(model_table()) == our_models()


@pytest.mark.parametrize("name", our_models())
def test_parameters_in_the_table(name):
    model = timm.create_model(name, device="meta")
    assert model_table()[name][0] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", our_models())
def test_accuracy_is_the_published_one(name):
    """The table gives what the model's configuration says, and says it of every model with weights."""
    cfg = timm.get_pretrained_cfg(name)
    note = re.search(r"top-1 ([\d.]+) % \(published\)", " ".join(cfg.notes or ()) if cfg is not None else "")
    assert model_table()[name][1] == (note[1] if note else "")
    assert note or cfg is None or not cfg.has_weights


def test_timm_suite_count():
    expected = run_timm_suite.expected_count(list(run_timm_suite.MODELS))
    assert f"passes {expected} tests" in README
    assert all(f"`{name}`" in README for name in run_timm_suite.MODELS)


def test_version():
    assert f'version = "{vmamba.__version__}"' in (ROOT / "pyproject.toml").read_text()
