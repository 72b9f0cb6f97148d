#!/usr/bin/env python3
r"""Install the wheel next to several Pythons and PyTorch releases, and run a part of the tests on each.

    python tools/test_matrix.py                                         # the Pythons that are found x all releases
    python tools/test_matrix.py --python 3.10 ~/python3.13/bin/python --torch 2.8.0 newest
    python tools/test_matrix.py --python 3.11 --torch 2.11.0 --results-file benchmarks/test_matrix.csv

Each cell is a fresh virtual environment with the wheel, one release of PyTorch and what pip finds for the rest; no
extras. First `import vmamba` and `python -m vmamba.env` have to work in it; then the tests of TESTS run on the
installed package, away from this checkout, after pytest was added. A cell takes several gigabytes of disk while it
runs, is removed afterwards, and fails where pip finds no such combination. The exit code is 1 if one failed.
"""
import argparse
import csv
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from vmamba.errors import UserError, tool

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RELEASES = ("2.8.0", "2.11.0", "newest")
# operators, gradcheck, opcheck, Triton kernels (interpreted without a GPU), export, compile, TorchScript, FX, parity
# with the published operator: minutes, where all tests take half an hour
TESTS = (*(f"tests/ops/test_selective_scan.py::test_{name}" for name in (
    "matches_official", "gradcheck", "opcheck", "meta_and_compile")), "tests/ops/test_triton_backend.py",
    "tests/ops/test_flops.py", "tests/models/test_vmamba.py")
TEST_REQUIREMENTS = ("pytest>=8", "pytest-timeout", "numpy", "expecttest")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "triton")
COLUMNS = ("python", "asked", *PACKAGES, "result", "passed", "failed", "skipped", "platform", "date", "command")


def find_python(name: str) -> str:
    """Path of a Python that runs: `name` itself if it is a path, else `pythonNAME`.

    Raises:
        UserError: there is none.
    """
    path = str(Path(name).expanduser()) if os.sep in name else shutil.which(f"python{name}")
    if path is None or subprocess.run([path, "-c", ""], capture_output=True).returncode:
        raise UserError(f"no Python {name} is found here: give its path, or other versions with --python")
    return path


def found_pythons() -> list[str]:
    """Those of PYTHONS that are found; the others are named."""
    found = []
    for name in PYTHONS:
        try:
            found.append(find_python(name))
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def build_wheel(folder: Path) -> Path:
    """Builds the wheel of a copy of the sources, so that nothing is left in the checkout."""
    source = folder / "source"
    for name in ("vmamba", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(source)], folder)
    return next(folder.glob("*.whl"))


def run(command: list[str], folder: Path) -> str:
    """Output of a command; one that fails raises a RuntimeError with the last lines it wrote."""
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError("\n".join(done.stdout.strip().splitlines()[-15:]))
    return done.stdout


def copy_tests(folder: Path) -> None:
    """The tests and pytest's settings, without the packages they import."""
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def counts(output: str) -> dict[str, int]:
    """How many tests passed, failed and were skipped, by the last line of pytest."""
    line = output.strip().splitlines()[-1]
    found = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)", line)}
    failed = found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
    return {"passed": found.get("passed", 0), "failed": failed, "skipped": found.get("skipped", 0)}


def run_cell(python: str, release: str, wheel: Path, folder: Path) -> dict[str, object]:
    """One row of the results: what was installed, and what came out."""
    copy_tests(folder)
    environment = folder / "environment"
    inside = str(environment / "bin" / "python")
    row: dict[str, object] = {"python": run([python, "-V"], folder).split()[1], "asked": release}
    try:
        run([python, "-m", "venv", str(environment)], folder)
        pip = [inside, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        run([*pip, str(wheel), "torch" if release == "newest" else f"torch=={release}"], folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return row | {"result": "not installable"}
    try:
        where = run([inside, "-c", "import vmamba; print(vmamba.__file__)"], folder).strip().splitlines()[-1]
        if not where.startswith(str(environment)):
            raise RuntimeError(f"vmamba was imported from {where}")
        report = json.loads(run([inside, "-m", "vmamba.env", "--json"], folder))
        row |= {"platform": report["platform"]} | {name: report["packages"].get(name, "") for name in PACKAGES}
        run([*pip, *TEST_REQUIREMENTS], folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return row | {"result": "failed"}
    tests = subprocess.run(
        [inside, "-m", "pytest", "-q", "-m", "not slow", "--tb=short", *TESTS], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if tests.returncode:
        print(tests.stdout[-8000:], file=sys.stderr)
    return row | {"result": "failed" if tests.returncode else "passed", **counts(tests.stdout)}


def append(path: Path, row: dict[str, object]) -> None:
    """Adds a row to the file; a new one gets a header."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


@tool
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--python", nargs="+", metavar="PYTHON", help=f"versions or paths (default: {' '.join(PYTHONS)})")
    add("--torch", nargs="+", default=RELEASES, metavar="RELEASE", help=f"default: {' '.join(RELEASES)}")
    add("--results-file", type=Path, metavar="CSV", help="append the results to this file")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "tools/test_matrix.py", *(sys.argv[1:] if argv is None else argv)])
    pythons = [find_python(name) for name in args.python] if args.python else found_pythons()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vmamba_matrix_") as shared:
        wheel = build_wheel(Path(shared))
        for python in pythons:
            for release in args.torch:
                with tempfile.TemporaryDirectory(prefix="vmamba_cell_") as folder:
                    row = run_cell(python, release, wheel, Path(folder))
                row |= {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
                        "command": command}
                failed += row["result"] != "passed"
                print(*(f"{key} {row[key]}" for key in ("python", "asked", "torch", "result", "passed", "failed")
                        if key in row), sep=", ", flush=True)
                if args.results_file is not None:
                    append(args.results_file, row)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
