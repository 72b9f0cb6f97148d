import ast
import subprocess
import sys
from pathlib import Path

import vmamba_kernels

PACKAGE = Path(vmamba_kernels.__file__).parent


def test_importing_the_package_imports_no_triton():
    code = "import sys, vmamba_kernels; assert 'triton' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_every_public_name_exists():
    for name in vmamba_kernels.__all__:
        assert getattr(vmamba_kernels, name).__doc__


def test_imports_are_relative():
    allowed = {"torch", "triton", "typing", "importlib", "inspect", "collections", "functools", "math"}
    for path in PACKAGE.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            roots = []
            if isinstance(node, ast.Import):
                roots = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = [node.module.split(".")[0]]
            assert set(roots) <= allowed, f"{path.name} imports {roots}"
