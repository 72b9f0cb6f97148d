"""tools/benchmark_scaling.py, with two processes over gloo. No test looks at how long anything took."""
import csv
import os
import subprocess
import sys
from pathlib import Path

import benchmark_scaling
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["test_vmamba", "--device", "cpu", "--threads", "1", "--img-size", "32", "--batch-size", "2", "--rounds", "2",
         "--steps", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "backend"), [
    ("cpu", "gloo"),
    pytest.param("cuda", "nccl", marks=[
        pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]),
])
def test_two_processes_make_one_row(tmp_path, device, backend):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "tools" / "benchmark_scaling.py"), *FLAGS, "--device", device, "--results-file",
         str(tmp_path / "s.csv")],
        env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "s.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["processes"], row["batch_size"], row["img_size"], row["backend"]) == (
        "test_vmamba", "2", "2", "32x32", backend)
    one, every, efficiency = (float(row[name]) for name in ("img_per_s_one", "img_per_s_all", "efficiency"))
    assert min(one, every, efficiency) > 0
    assert row["device"]
    assert row["commit"]
    assert done.stdout.count("| test_vmamba |") == 1


def test_bad_input(tmp_path, capsys):
    assert benchmark_scaling.main(["vmamba_tinny", "--device", "cpu"]) == 2
    assert "unknown model 'vmamba_tinny'; near names: vmamba_tiny" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("a,b\n")
    assert benchmark_scaling.main([*FLAGS, "--results-file", str(tmp_path / "other.csv")]) == 2
    assert "has other columns than this benchmark writes" in capsys.readouterr().err
