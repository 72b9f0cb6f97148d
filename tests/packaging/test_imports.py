"""What `import vmamba` costs and needs, and which part of the code may import which."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# heavy or optional packages that importing the models must never bring in by itself
OPTIONAL = ("triton", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "albumentations", "matplotlib", "sklearn",
            "mlxtend", "torchmetrics", "pandas", "scipy", "av", "onnx", "onnxruntime", "onnxscript")

# package -> the project's other packages that it may import; `vmamba` itself stands for vmamba/__init__.py
ALLOWED = {
    "vmamba_kernels": set(),
    "vmamba.scans": set(),
    "vmamba.errors": set(),
    "vmamba._timm": set(),
    "vmamba.ops": {"vmamba_kernels", "vmamba.scans"},
    "vmamba.layers": {"vmamba.ops", "vmamba.scans", "vmamba._timm"},
    "vmamba.models": {"vmamba.layers", "vmamba.ops", "vmamba.scans", "vmamba._timm"},
    "vmamba.data": {"vmamba.errors", "vmamba._timm"},
    "vmamba.export": {"vmamba.ops", "vmamba.scans", "vmamba.errors"},
    "vmamba.train": {
        "vmamba.data", "vmamba.models", "vmamba.export", "vmamba.errors", "vmamba._timm", "vmamba"},
    "vmamba.tasks": {
        "vmamba.models", "vmamba.layers", "vmamba.ops", "vmamba.scans", "vmamba.data", "vmamba.train", "vmamba.errors",
        "vmamba._timm", "vmamba"},
    "vmamba.analysis": {
        "vmamba.models", "vmamba.layers", "vmamba.ops", "vmamba.scans", "vmamba.data", "vmamba.train", "vmamba.tasks",
        "vmamba.errors", "vmamba._timm", "vmamba"},
    "vmamba.openmmlab": {"vmamba.models", "vmamba.data", "vmamba.errors", "vmamba._timm", "vmamba"},
    "vmamba.env": {"vmamba", "vmamba.ops"},
    "vmamba": {"vmamba.models"},
}
SOURCES = sorted([*(ROOT / "vmamba").rglob("*.py"), *(ROOT / "kernels" / "vmamba_kernels").rglob("*.py")])


def run_python(code, *flags):
    """Run code in a fresh interpreter, in the project's root, and return what it printed."""
    done = subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules_after(imports):
    """Which of `OPTIONAL` are loaded after the given import statement."""
    return set(run_python(
        f"import sys\nsys.path[:0] = ['.', 'kernels']\n{imports}\n"
        f"print(*[name for name in {OPTIONAL!r} if name in sys.modules])").split())


def test_import_brings_in_nothing_optional_beyond_timm():
    """PyTorch and timm themselves import Triton where it is installed: only what vmamba adds counts."""
    assert modules_after("import vmamba") <= modules_after("import timm")


def test_import_works_without_anything_optional():
    assert run_python(f"""
import sys
sys.path[:0] = ['.', 'kernels']
sys.modules.update(dict.fromkeys({OPTIONAL!r}))     # None: importing it fails as if it were not installed
import torch, timm, vmamba
model = timm.create_model('test_vmamba').eval()
print(tuple(model(torch.zeros(1, 3, 64, 48)).shape))
""").strip() == "(1, 1000)"


def test_import_registers_models():
    assert int(run_python("""
import sys
sys.path[:0] = ['.', 'kernels']
import timm
before = set(timm.list_models())
import vmamba
after = set(timm.list_models())
assert before < after, 'nothing new is registered'
print(len(after - before))
""")) > 0


def test_import_time():
    """`import vmamba` takes less than 1.5 times as long as `import timm`, which it contains.

    Timed asserts are the exception here: the bound is a promise to users. Fresh processes, taken in turn, and the
    fastest of each kind, which a busy machine disturbs least.
    """
    times = {"timm": [], "vmamba": []}
    for _ in range(3):
        for name, seconds in times.items():
            seconds.append(float(run_python(
                "import sys, time\nsys.path[:0] = ['.', 'kernels']\nbegin = time.perf_counter()\n"
                f"import {name}\nprint(time.perf_counter() - begin)")))
    ratio = min(times["vmamba"]) / min(times["timm"])
    assert ratio < 1.5, f"{ratio:.2f}, medians {({k: round(statistics.median(v), 2) for k, v in times.items()})}"


def part_of(module):
    """The row of `ALLOWED` a module of the project falls under, None for a module of others."""
    top, *rest = module.split(".")
    if top == "vmamba_kernels":
        return top
    if top != "vmamba":
        return None
    return f"vmamba.{rest[0]}" if rest else "vmamba"


def module_name(path):
    base = ROOT / "kernels" if "vmamba_kernels" in path.relative_to(ROOT).parts else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_parts(path):
    """The parts of the project that a source file imports, with the line numbers; its own part left out."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[:len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            # `from vmamba import ops` imports vmamba.ops
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "vmamba" else [base]
        else:
            continue
        found += [(part, node.lineno) for part in map(part_of, names) if part and part != part_of(own)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    part = part_of(module_name(path))
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    wrong = [f"line {line}: {other}" for other, line in imported_parts(path) if other not in ALLOWED[part]]
    assert not wrong, f"{part} may import {sorted(ALLOWED[part])} only"


def test_kernels_folder_does_not_shadow_a_package_of_that_name(tmp_path):
    """Seen from the root, the folder is no package: one called `kernels` that is installed still wins."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    assert not (ROOT / "kernels" / "__init__.py").exists()
    origin = run_python(f"""
import importlib.util, sys
sys.path.insert(0, '')
sys.path.append({str(tmp_path)!r})
print(importlib.util.find_spec('kernels').origin)
""")
    assert Path(origin.strip()) == tmp_path / "kernels" / "__init__.py"
