"""tools/compare_training.py on a few steps."""
import csv

import compare_training
import pytest
import torch
from PIL import Image

from vmamba.layers import SS2D

FLAGS = ["test_vmamba", "--dataset", "digits", "--device", "cpu", "--threads", "1", "--img-size", "32",
         "--batch-size", "4", "--steps", "2"]


def test_runs_differ_by_rounding_only(tmp_path, capsys):
    flags = [*FLAGS, "--results-file", str(tmp_path / "c.csv"), "--plot", str(tmp_path / "new" / "c.png")]
    assert compare_training.main(flags) == 0
    with open(tmp_path / "c.csv", newline="") as file:
        reference, fast = csv.DictReader(file)
    assert [row["operators"] for row in (reference, fast)] == ["reference", "auto"]
    curves = [[float(loss) for loss in row["losses"].split()] for row in (reference, fast)]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
    assert curves[0][0] != curves[0][1]
    assert float(fast["difference"]) <= 2e-4
    assert fast["last_loss"] == f"{sum(curves[1]) / 2:.4f}"
    assert Image.open(tmp_path / "new" / "c.png").size == (700, 550)
    assert "| test_vmamba |  digits |" in capsys.readouterr().out


def test_a_wrong_operator_shows(monkeypatch, tmp_path):
    def forward(self, x, _original=SS2D.forward):
        y = _original(self, x)
        return y if torch._C._len_torch_function_stack() else y * 1.5

    monkeypatch.setattr(SS2D, "forward", forward)
    assert compare_training.main([*FLAGS, "--results-file", str(tmp_path / "c.csv")]) == 0
    with open(tmp_path / "c.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[1]["difference"]) > 1e-2


def test_autocast_adds_the_references_without_it(tmp_path):
    assert compare_training.main([*FLAGS, "--amp-dtype", "bfloat16", "--results-file", str(tmp_path / "c.csv")]) == 0
    with open(tmp_path / "c.csv", newline="") as file:
        rows = [(row["operators"], row["amp_dtype"]) for row in csv.DictReader(file)]
    assert rows == [("reference", "bfloat16"), ("auto", "bfloat16"), ("reference", "")]


def test_bad_input(capsys):
    assert compare_training.main(["vmamba_tinny", "--device", "cpu"]) == 2
    assert "unknown model 'vmamba_tinny'; near names: vmamba_tiny" in capsys.readouterr().err
