"""Rules on the sources that no linter checks: file and function sizes, and the public names."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("vmamba", "kernels", "tools", "tests", "configs")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if "goldens" not in p.parts)
MAX_LINES, MAX_MODEL_LINES = 400, 600
# a Triton kernel cannot hand its tiles to a helper piece by piece: one launch is one function
MAX_FUNCTION_LINES, MAX_KERNEL_LINES = 60, 240

# adding a public name means adding it here, and to CHANGELOG.md
PUBLIC = {
    "vmamba.scans": [
        "Route", "ScanOrder", "VIDEO_SCANS", "VIDEO_SCHEDULES", "consistent_traverse", "default_directions",
        "hilbert_voxels", "list_scans", "morton_voxels", "recap_order", "register_alias",
        "register_numbered_path", "register_path", "register_scan", "scan_length", "scan_order", "scan_routes",
        "scan_tokens", "step_moves", "video_order", "video_routes", "video_schedule"],
    "vmamba.ops": [
        "ReferenceOperators", "add_layer_norm", "depthwise_conv_add", "depthwise_conv_silu", "mlp",
        "neighborhood_apply", "neighborhood_weights", "reorder", "selective_scan", "ss2d_mixer", "ss2d_scan",
        "ss2d_scan_norm", "ssd_scan"],
}


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_a_file_is_short_enough_to_read(path):
    lines = len(path.read_text().splitlines())
    assert lines <= (MAX_MODEL_LINES if relative(path).startswith("vmamba/models/") else MAX_LINES)


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).split("/")[0] != "tests"], ids=relative)
def test_a_function_is_short_enough_to_read(path):
    """The docstring, which may hold tables, does not count."""
    long = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            jitted = any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if lines > (MAX_KERNEL_LINES if jitted else MAX_FUNCTION_LINES):
                long.append(f"{node.name}: {lines} lines")
    assert not long


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    loaded = importlib.import_module(module)
    assert sorted(loaded.__all__) == sorted(PUBLIC[module])
    assert all(hasattr(loaded, name) for name in loaded.__all__)
