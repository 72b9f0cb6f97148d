"""The original packages of 2023 and 2024 serve as well as the maintained ones: only what both have is used."""
import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLBOXES = ("mmengine", "mmcv", "mmdet", "mmseg")
# Everything that may be imported. Each name is in mmengine 0.10.7, mmdet 3.3.0 and mmsegmentation 1.2.2 too:
# look there before adding one.
KNOWN = {
    "mmengine.logging": {"print_log"},
    "mmengine.model": {"BaseModule"},
    "mmengine.optim": {"DefaultOptimWrapperConstructor"},
    "mmengine.registry": {"MODELS", "OPTIM_WRAPPER_CONSTRUCTORS", "TRANSFORMS"},
}
SOURCES = sorted([*(ROOT / "vmamba" / "openmmlab").glob("*.py"), *(ROOT / "tools").glob("*.py")])


def imported(path):
    """(module, name) of every import of a toolbox in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOOLBOXES:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] in TOOLBOXES)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_are_known(path):
    unknown = [(module, name) for module, name in imported(path) if name not in KNOWN.get(module, set())]
    assert not unknown, "add them to KNOWN once they are found in the original packages"


@pytest.mark.parametrize("module", KNOWN)
def test_known_names_exist(module):
    loaded = importlib.import_module(module)
    assert [name for name in KNOWN[module] if not hasattr(loaded, name)] == []
