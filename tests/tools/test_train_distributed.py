"""Training by several processes: the losses of one with the same global batch, each image counted once, no hanging."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.shards import write_shards

from vmamba.train import fit
from vmamba.train.stop import EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.slow


def start(flags, script="tools/train.py"):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / script),
         *flags], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(run):
    with open(run / "steps.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_equal_one(image_folder, small_flags, tmp_path):
    """51 steps with AdamW and an average of the weights, by 1 process, by 2, and by 1 that accumulates."""
    more = ["--epochs", "17", "--log-interval", "1", "--hflip", "0.5", "--model-ema"]
    assert fit.main(small_flags(image_folder, tmp_path / "one", *more)) == 0
    assert fit.main(small_flags(image_folder, tmp_path / "part", *more, "-b", "8", "--grad-accum-steps", "2")) == 0
    process = start(small_flags(image_folder, tmp_path / "two", *more, "-b", "8"))
    output, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    assert output.count("epoch 17/17") == 1
    one = losses(tmp_path / "one" / "run")
    assert len(one) == 51
    for other in ("part", "two"):
        assert losses(tmp_path / other / "run") == pytest.approx(one, rel=1e-6)
    with open(tmp_path / "two" / "run" / "confusion.csv", newline="") as file:
        assert [sum(map(int, row[1:])) for row in list(csv.reader(file))[1:]] == [5, 5, 5]


def test_sharded_processes_equal_one(image_folder, small_flags, tmp_path):
    """FSDP2 with accumulation, clipping and averaged weights; the second half is trained by one process, unsharded."""
    more = ["--epochs", "4", "--log-interval", "1", "--hflip", "0.5", "--model-ema", "--model-ema-decay", "0.9",
            "--clip-grad", "1"]
    assert fit.main(small_flags(image_folder, tmp_path / "one", *more)) == 0
    for flags, epochs in (("--stop-epoch 1", 1), ("--resume RUN --stop-epoch 2", 2)):   # saved and loaded, sharded
        flags = flags.replace("RUN", str(tmp_path / "two" / "run")).split()
        process = start([*small_flags(image_folder, tmp_path / "two", *more), *flags, "--fsdp", "-b", "4",
                         "--grad-accum-steps", "2"])
        output, error = process.communicate(timeout=500)
        assert process.returncode == 0, error
        assert f"stopped after epoch {epochs} of 4" in output
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    assert fit.main(["--resume", str(two), "--no-fsdp", "-b", "16", "--grad-accum-steps", "1"]) == 0
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    for name in ("last", "last_ema"):
        left, right = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        assert left.keys() == right.keys()
        for key in left:
            torch.testing.assert_close(right[key], left[key], rtol=1e-4, atol=1e-6)


def test_webdataset_by_two_processes(small_flags, tmp_path):
    """Each validation image counts once, although the shards cannot be shared out evenly."""
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", {"train": [8, 8, 8, 8], "validation": [9, 2, 6]})
    flags = ["--dataset", "wds/digits", "--num-classes", "32", "-b", "8", "--epochs", "1", "--workers", "2"]
    process = start(small_flags(tmp_path / "data", tmp_path, *flags))
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    with open(tmp_path / "run" / "confusion.csv", newline="") as file:
        counts = [sum(map(int, row[1:])) for row in list(csv.reader(file))[1:]]
    assert counts == [1] * 17 + [0] * 15


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("more", [(), ("--fsdp",)], ids=["ddp", "fsdp"])
def test_two_gpus_equal_one(image_folder, small_flags, tmp_path, more):
    """The same over NCCL; kernels of different batch sizes round differently, so the losses agree less closely."""
    flags = ["--epochs", "4", "--log-interval", "1", "--device", "cuda", "--model-ema", "--clip-grad", "1"]
    assert fit.main(small_flags(image_folder, tmp_path / "one", *flags)) == 0
    process = start(small_flags(image_folder, tmp_path / "two", *flags, *more, "-b", "8"))
    output, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    assert output.count("epoch 4/4") == 1
    assert losses(tmp_path / "two" / "run") == pytest.approx(losses(tmp_path / "one" / "run"), rel=1e-3)


def test_all_stop_together_and_resume_with_another_number_of_processes(image_folder, small_flags, tmp_path):
    flags = small_flags(image_folder, tmp_path, "-b", "8", "--epochs", "400", "--log-interval", "1")
    process = start(flags)
    path = tmp_path / "run" / "steps.csv"
    while process.poll() is None and not (path.exists() and len(path.read_text().splitlines()) > 2):
        time.sleep(0.1)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[0]), signal.SIGTERM)    # one of them: the others hear of it
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert re.search(r"stopped at step \d of 3 in epoch \d+ of 400; continue with:", error)
    assert f"exitcode  : {EXIT_STOPPED}" in error
    done = len(losses(tmp_path / "run"))
    assert fit.main(["--resume", str(tmp_path / "run"), "-b", "16", "--epochs", "400", "--stop-epoch",
                     str(done // 3 + 1)]) == 0
    assert len(losses(tmp_path / "run")) == 3 * (done // 3 + 1)


def test_a_process_that_dies_takes_the_others_with_it(image_folder, small_flags, tmp_path):
    flags = small_flags(image_folder, tmp_path, "-b", "8", "--epochs", "3")
    process = start(flags, "tests/support/failing_rank.py")
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in error
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "last.safetensors").values())
    assert fit.main(["--resume", str(tmp_path / "run"), "-b", "16"]) == 0
