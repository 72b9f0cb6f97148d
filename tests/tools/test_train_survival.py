"""Training survives being stopped, killed and fed with bad data: nothing is lost, nothing wrong is saved."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import get_worker_info

from vmamba.data.order import SeededDataset
from vmamba.train import evaluation, fit
from vmamba.train.loop import EpochTrainer
from vmamba.train.stop import EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
FLAGS = ("--model-ema", "--log-interval", "1", "--mixup", "0.2", "--drop-path", "0.1", "--reprob", "0.2")


@pytest.fixture(scope="module")
def whole(image_folder, small_flags, tmp_path_factory):
    """An uninterrupted run with `FLAGS`: 2 epochs of 3 steps."""
    output = tmp_path_factory.mktemp("whole")
    assert fit.main(small_flags(image_folder, output, *FLAGS)) == 0
    return output / "run"


@pytest.fixture
def flags(image_folder, small_flags, tmp_path):
    return small_flags(image_folder, tmp_path, *FLAGS)


def assert_equal_runs(left, right):
    for name in ("last", "last_ema", "model_best", "model_best_ema"):
        a, b = load_file(left / f"{name}.safetensors"), load_file(right / f"{name}.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert (left / "steps.csv").read_text() == (right / "steps.csv").read_text()


def before_step(monkeypatch, number, action):
    """Calls `action` before the step of this number, counted from 1 over all epochs."""
    step, numbers = EpochTrainer._step, count(1)

    def patched(self, *args):
        if next(numbers) == number:
            action()
        return step(self, *args)

    monkeypatch.setattr(EpochTrainer, "_step", patched)


def send(number):
    # to this thread: two that arrive in another one before Python looks would count as one
    return lambda: signal.raise_signal(number)


@pytest.mark.parametrize(("number", "step", "where"), [
    (signal.SIGTERM, 2, "step 2 of 3 in epoch 1 of 2"), (signal.SIGINT, 3, "step 3 of 3 in epoch 1 of 2"),
    (signal.SIGINT, 4, "step 1 of 3 in epoch 2 of 2")])
def test_a_signal_saves_and_stops(whole, flags, tmp_path, monkeypatch, capsys, number, step, where):
    handlers = [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        before_step(patch, step, send(number))
        assert fit.main(flags) == EXIT_STOPPED == 75
    assert handlers == [signal.getsignal(other) for other in (signal.SIGTERM, signal.SIGINT)]
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{number.name}: saving at the next step, then stopping; once more ends at once"
    command = f"python tools/train.py --resume {tmp_path}/run"
    assert second == f"stopped at {where}; continue with: {command}"
    assert fit.main(command.split()[2:]) == 0
    assert_equal_runs(whole, tmp_path / "run")


def test_a_signal_during_evaluation(whole, flags, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluation_sample_limit", lambda loader: send(signal.SIGTERM)())
        assert fit.main(flags) == EXIT_STOPPED
    assert "stopped at step 3 of 3 in epoch 1 of 2" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.safetensors").exists()
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    assert_equal_runs(whole, tmp_path / "run")


@pytest.fixture
def interruptible():
    """A shell lets what it starts in the background ignore SIGINT; here it ends a process, as usual."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_ends_at_once(flags, monkeypatch, capsys):
    # Python looks for signals now and then: the first has to be seen before the second comes
    before_step(monkeypatch, 2, lambda: [(send(signal.SIGINT)(), time.sleep(0.1)) for _ in range(2)])
    assert fit.main(flags) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_auto_resume_begins_and_continues_with_one_command(whole, flags, tmp_path, monkeypatch, capsys):
    command = [*flags, "--auto-resume"]
    with monkeypatch.context() as patch:
        before_step(patch, 2, send(signal.SIGTERM))
        assert fit.main(command) == EXIT_STOPPED
    assert fit.main(command) == 0
    assert "resumed after epoch 0, step 2 of 3" in capsys.readouterr().out
    assert_equal_runs(whole, tmp_path / "run")
    assert fit.main([*command[:-1], "--no-auto-resume"]) == 2
    assert [start["command"].split()[-1] for start in json.loads((tmp_path / "run/environment.json").read_text())] == [
        "--auto-resume"] * 2


def test_a_run_killed_before_its_first_state_begins_anew(whole, flags, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(whole / "args.yaml", tmp_path / "run")
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    assert "no state saved yet: begins anew" in capsys.readouterr().out
    assert_equal_runs(whole, tmp_path / "run")


def test_another_batch_size_within_an_epoch(flags, tmp_path, monkeypatch, capsys):
    before_step(monkeypatch, 2, send(signal.SIGTERM))
    assert fit.main(flags) == EXIT_STOPPED
    capsys.readouterr()
    assert fit.main(["--resume", str(tmp_path / "run"), "-b", "8"]) == 2
    assert re.fullmatch(r"error: cannot resume \S+ with these options: it stopped at step 2 of 3 in epoch 1, which "
                        r"would now have 6 steps\n", capsys.readouterr().err)


def test_a_damaged_state_falls_back_to_the_one_before(whole, flags, tmp_path, capsys):
    assert fit.main([*flags, "--recovery-interval", "1", "--stop-epoch", "1"]) == 0
    path = tmp_path / "run" / "resume.pt"
    path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    assert re.match(r"warning: cannot read checkpoint \S+resume.pt: it is incomplete.*continuing from", output.err)
    assert "resumed after epoch 0, step 2 of 3" in output.out
    assert_equal_runs(whole, tmp_path / "run")


def poison(monkeypatch, *numbers):
    """Makes the loss of the batches with these numbers, counted from 1, NaN."""
    from timm.task import ClassificationTask
    forward, calls = ClassificationTask.forward, count(1)

    def patched(self, *args):
        result = forward(self, *args)
        return {**result, "loss": result["loss"] * float("nan")} if next(calls) in numbers else result

    monkeypatch.setattr(ClassificationTask, "forward", patched)


def test_nan_names_its_step_and_is_not_saved(flags, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, 5)
    assert fit.main([*flags, "--log-interval", "10", "--recovery-interval", "1"]) == 2
    assert re.fullmatch(r"error: the training loss became nan at step 2 of 3 in epoch 2: .*--max-skipped-steps.*\n",
                        capsys.readouterr().err)
    for path in (tmp_path / "run").glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    state = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 1)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.parametrize("more", [(), ("--amp", "--amp-dtype", "float16")], ids=["float32", "float16"])
def test_nan_steps_are_left_out_reported_and_bounded(flags, tmp_path, monkeypatch, capsys, more):
    poison(monkeypatch, 2, 3, 5)
    assert fit.main([*flags, "--max-skipped-steps", "2", *more]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        f"warning: step {step} of 3 in epoch 1 is left out: its gradients are not finite ({number} of at most 2)"
        for number, step in ((1, 2), (2, 3))]
    assert re.fullmatch(r"error: the gradients of step 2 of 3 in epoch 2 are not finite, and --max-skipped-steps 2 .*",
                        lines[2])
    with open(tmp_path / "run" / "steps.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert [loss == loss for loss in losses][:4] == [True, False, False, True]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "last.safetensors").values())


@pytest.mark.parametrize("workers", ["0", "2"])
def test_unreadable_images(own_folder, small_flags, tmp_path, workers, capfd):
    paths = sorted((own_folder / "train" / "two").iterdir())[::5]   # no neighbours: each is met once an epoch
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:-30])
    flags = [*small_flags(own_folder, tmp_path / "out", "--epochs", "1", "--workers", workers), "--max-unreadable"]
    assert fit.main([*flags, "2"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert {re.fullmatch(r"warning: cannot read image (\S+): .*; its neighbour takes its place \(\d of at most 2 an "
                         r"epoch\)", line)[1] for line in lines} == {str(path) for path in paths[:2]}
    assert fit.main([*flags, "1", "--overwrite"]) == 2
    assert re.search(r"^error: cannot read image \S+: .*one more than --max-unreadable 1", capfd.readouterr().err,
                     re.MULTILINE)


def test_a_loader_process_that_dies(whole, flags, tmp_path, monkeypatch, capfd):
    read, numbers = SeededDataset.__getitem__, count(1)

    def die(self, place):
        if get_worker_info() is not None and next(numbers) == 40:
            os._exit(9)
        return read(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(SeededDataset, "__getitem__", die)
        assert fit.main([*flags, "--workers", "1"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: DataLoader worker .*exited unexpectedly.*; continue with: python tools/train.py "
                        rf"--resume {tmp_path}/run", error), error
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    assert_equal_runs(whole, tmp_path / "run")


def test_a_loader_process_that_dies_before_its_batch_is_fetched(flags, tmp_path, monkeypatch, capsys):
    class Gone:
        def detach(self):
            raise ConnectionResetError(errno.ECONNRESET, "connection reset by peer")

    def fetch(*_):
        torch.multiprocessing.reductions.rebuild_storage_fd(torch.UntypedStorage, Gone(), 4)

    monkeypatch.setattr(fit, "_train", fetch)
    assert fit.main([*flags, "--workers", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(
        "error: DataLoader worker exited unexpectedly (ConnectionResetError). Loaders die for want of memory")

    def elsewhere(*_):
        raise ConnectionResetError(errno.ECONNRESET, "a tracker's server")

    monkeypatch.setattr(fit, "_train", elsewhere)
    with pytest.raises(ConnectionResetError, match="a tracker's server"):
        fit.main([*flags, "--workers", "1", "--overwrite"])


def test_a_full_disk(whole, flags, tmp_path, monkeypatch, capsys):
    fsync, calls = os.fsync, count(1)

    def full(handle):
        if next(calls) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert fit.main([*flags, "--recovery-interval", "1"]) == 2
    assert re.fullmatch(r"error: cannot write \S+/run/\S+: No space left on device\n", capsys.readouterr().err)
    assert not list((tmp_path / "run").glob(".*"))
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    assert_equal_runs(whole, tmp_path / "run")


def test_tensorboard_events_go_on_where_the_run_does(flags, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        before_step(patch, 5, send(signal.SIGTERM))
        assert fit.main([*flags, "--tensorboard"]) == EXIT_STOPPED
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    with open(tmp_path / "run" / "steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = events.Scalars("step/loss")
    assert [event.step for event in found] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in found] == pytest.approx([float(row["loss"]) for row in rows])
    assert [event.step for event in events.Scalars("epoch/eval_top1")] == [3, 6]


@pytest.mark.parametrize("more", [
    ("--amp", "--amp-dtype", "float16"),
    ("--amp", "--amp-dtype", "bfloat16", "--channels-last"),
    ("--mesa", "1", "--mesa-start", "0.5"),
    ("--grad-accum-steps", "2", "--workers", "2"),
], ids=["float16", "bfloat16", "mesa", "accumulation"])
def test_resumed_within_an_epoch(flags, tmp_path, monkeypatch, more):
    """Loss scaler, narrow types, self-distillation, accumulation: stopped in the second epoch, they end alike."""
    flags = [*flags, *more, "-b", "8"]
    assert fit.main([*flags, "--experiment", "whole"]) == 0
    with monkeypatch.context() as patch:
        before_step(patch, 5 if "2" in more else 8, send(signal.SIGTERM))
        assert fit.main(flags) == EXIT_STOPPED
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def kill_training(image_folder, tmp_path, kills, *more):
    shutil.copytree(image_folder, tmp_path / "data")
    script = ROOT / "tests" / "support" / "kill_training.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "--kills", str(kills), "--more", *more],
                          env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_three_times(image_folder, tmp_path):
    report = kill_training(image_folder, tmp_path, 3, "workers=0", "epochs=2")
    assert (report["differences"], report["warnings"]) == ([], 0)
    assert report["kills"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_25_times(image_folder, tmp_path):
    report = kill_training(image_folder, tmp_path, 25, "workers=1", "epochs=6")
    assert (report["differences"], report["warnings"]) == ([], 0)
    assert report["kills"] == 25
    assert report["with_state"] >= 20
