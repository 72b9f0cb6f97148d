"""tools/test_matrix.py without installing anything: what it asks for, and what it writes down."""
import csv
import shlex
import subprocess
import sys

import _results
import performance_tables
import pytest
import test_matrix

REPORT = ('{"platform": "Linux", "packages": {"torch": "2.8.0+cu128", "torchvision": "0.23.0", "timm": "1.0.31", '
          '"numpy": "2.2.6", "triton": "3.4.0"}}')


class Commands:
    """Stands in for the shell: notes the commands, and answers what a working environment would."""

    def __init__(self, environment, broken="", tests="12 passed, 3 skipped in 5.00s", code=0):
        self.seen, self.environment, self.broken, self.tests, self.code = [], environment, broken, tests, code

    def run(self, command, folder):
        line = " ".join(command)
        self.seen.append(line)
        if self.broken and self.broken in line:
            raise RuntimeError("ERROR: no matching distribution")
        if "vmamba.__file__" in line:
            return f"a warning\n{self.environment}/lib/site-packages/vmamba/__init__.py\n"
        return REPORT if "vmamba.env" in line else "Python 3.10.13"

    def pytest(self, command, **_):
        self.seen.append(" ".join(command))
        return subprocess.CompletedProcess(command, self.code, stdout=f"...\n{self.tests}\n")


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """Runs one cell with given answers; gives the row and the commands."""
    def run(release="2.8.0", **answers):
        commands = Commands(tmp_path / "environment", **answers)
        monkeypatch.setattr(test_matrix, "run", commands.run)
        monkeypatch.setattr(test_matrix, "copy_tests", lambda folder: None)
        monkeypatch.setattr(test_matrix.subprocess, "run", commands.pytest)
        return test_matrix.run_cell("python3.10", release, tmp_path / "vmamba.whl", tmp_path), commands.seen
    return run


def test_a_cell_installs_the_wheel_alone_and_tests_it(cell, tmp_path):
    row, seen = cell()
    assert row == {"python": "3.10.13", "asked": "2.8.0", "torch": "2.8.0+cu128", "torchvision": "0.23.0",
                   "timm": "1.0.31", "numpy": "2.2.6", "triton": "3.4.0", "platform": "Linux", "result": "passed",
                   "passed": 12, "failed": 0, "skipped": 3}
    installed = next(i for i, line in enumerate(seen) if line.endswith(f"{tmp_path}/vmamba.whl torch==2.8.0"))
    imported = next(i for i, line in enumerate(seen) if "vmamba.__file__" in line)
    tools = next(i for i, line in enumerate(seen) if "pytest-timeout" in line and "install" in line)
    assert installed < imported < tools < len(seen) - 1     # it has to work before the tests' packages come
    assert all(test in seen[-1] for test in test_matrix.TESTS)


def test_newest_pins_nothing(cell, tmp_path):
    _, seen = cell("newest")
    assert any(line.endswith("vmamba.whl torch") for line in seen)


@pytest.mark.parametrize(("answers", "result", "failed"), [
    ({"broken": "torch==2.8.0"}, "not installable", None), ({"broken": "vmamba.env"}, "failed", None),
    ({"tests": "2 failed, 10 passed, 1 error in 5.00s", "code": 1}, "failed", 3)])
def test_failures_are_told_apart(answers, result, failed, cell):
    row, _ = cell(**answers)
    assert row["result"] == result
    assert row.get("failed") == failed


def test_a_checkout_in_place_of_the_wheel_is_a_failure(cell, tmp_path, monkeypatch, capsys):
    row, _ = cell()
    assert row["result"] == "passed"
    monkeypatch.setattr(Commands, "run", lambda *_: "Python /checkout/vmamba/__init__.py")
    row, _ = cell()
    assert row["result"] == "failed"
    assert "vmamba was imported from Python /checkout" in capsys.readouterr().err


def test_rows_make_the_table_of_the_documentation(tmp_path, monkeypatch, capsys):
    results = iter([
        {"python": "3.13.0", "asked": "newest", "result": "failed", "torch": "2.14.1", "passed": 9, "failed": 1},
        {"python": "3.13.0", "asked": "newest", "result": "passed", "torch": "2.14.1", "passed": 10, "failed": 0},
        {"python": "3.10.2", "asked": "2.8.0", "result": "not installable"}])
    monkeypatch.setattr(test_matrix, "build_wheel", lambda folder: folder / "vmamba.whl")
    monkeypatch.setattr(test_matrix, "run_cell", lambda *_: dict(next(results)))
    monkeypatch.setattr(_results, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "benchmarks" / "test_matrix.csv"
    flags = ["--python", sys.executable, "--results-file", str(path)]
    assert test_matrix.main([*flags, "--torch", "newest"]) == 1
    assert test_matrix.main([*flags, "--torch", "newest"]) == 0
    assert test_matrix.main([*flags, "--torch", "2.8.0"]) == 1
    assert "python 3.10.2, asked 2.8.0, result not installable" in capsys.readouterr().out
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["result"] for row in rows] == ["failed", "passed", "not installable"]
    assert rows[2]["command"] == shlex.join(["python", "tools/test_matrix.py", *flags, "--torch", "2.8.0"])
    lines = performance_tables.tested_versions().splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:3]] for line in lines[2:]] == [
        ["3.10.2", "2.8.0"], ["3.13.0", "2.14.1"]]
    assert "passed" in lines[3]
    assert "10 passed, 0 failed" in lines[3]


def test_an_unknown_python_is_one_line(capsys):
    assert test_matrix.main(["--python", "9.9"]) == 2
    assert capsys.readouterr().err.startswith("error: no Python 9.9 is found here")
