"""tools/benchmark_export.py: its rows, and the names it takes."""
import csv

import benchmark_export
import pytest

from vmamba.errors import UserError
from vmamba.train import export


def test_rows_of_a_format_that_works_and_of_one_that_does_not(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise UserError("no such operator")

    monkeypatch.setitem(export.WRITERS, ".onnx", refuse)
    path = tmp_path / "a.csv"
    argv = ["test_mlla", "--format", ".pt", ".onnx", "--num-iter", "1", "--num-warm-iter", "1"]
    assert benchmark_export.main([*argv, "--device", "cpu", "--results-file", str(path)]) == 0
    with path.open(newline="") as file:
        eager, script, onnx = csv.DictReader(file)
    assert (eager["format"], eager["time_ratio"], eager["difference"]) == ("PyTorch", "1.000", "")
    assert (script["format"], script["sizes"], script["reason"]) == (".pt", "any", "")
    assert float(script["difference"]) <= 1e-4
    assert float(script["time_ratio"]) > 0
    assert (onnx["format"], onnx["sizes"], onnx["reason"]) == (".onnx", "none", "no such operator")
    assert onnx["time_ratio"] == ""
    assert "| test_mlla |" in capsys.readouterr().out


def test_a_star_stands_for_names_of_this_package():
    names = benchmark_export.parse_args(["vim_tiny*", "test_v*", "vim_tiny_patch16_224"]).models
    assert names == ["vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224", *names[2:]]
    assert {"test_vim", "test_vmamba"} < set(names)
    assert "test_vit" not in names    # timm's


@pytest.mark.parametrize(("argv", "message"), [
    (["none_*"], "no model of this package is called none_*"),
    (["vmamba_tinny"], "vmamba_tinny"),
])
def test_wrong_names(argv, message, capsys):
    assert benchmark_export.main([*argv, "--device", "cpu"]) == 2
    assert message in capsys.readouterr().err
