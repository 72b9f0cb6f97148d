"""Trains once in peace and once killed again and again at random moments, and says whether the results are equal.

    python tests/support/kill_training.py FOLDER --kills 25

needs an image folder at FOLDER/data and works in FOLDER/whole and FOLDER/killed. Its last line is a JSON object.
Imports happen once, the training processes are forked off, so that most of their time is training.
"""
import argparse
import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from vmamba.train import fit
from vmamba.train.checkpoint import load_state, load_weights
from vmamba.train.run_directory import RunDirectory

FLAGS = ("--model", "test_vmamba", "--img-size", "32", "--batch-size", "4", "--grad-accum-steps", "2", "--epochs", "4",
         "--lr", "1e-3", "--warmup-epochs", "1", "--mixup", "0.2", "--cutmix", "1", "--reprob", "0.25", "--aa",
         "rand-m3-n1", "--drop-path", "0.1", "--model-ema", "--model-ema-warmup", "--clip-grad", "1", "--device", "cpu",
         "--log-interval", "1", "--recovery-interval", "1", "--checkpoint-interval", "2", "--experiment", "run",
         "--auto-resume", "--seed", "7")


def start(folder, log, more):
    """Forks a process that begins or continues the run in `folder`; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        with contextlib.suppress(BaseException):
            code = fit.main([*FLAGS, *more, "--data-dir", str(folder.parent / "data"), "--output", str(folder)])
        file.flush()
    os._exit(code)


def wait(child, seconds):
    """Returns the exit code of a process, None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def check_files(run):
    """Reads every checkpoint that is there: none may ever be half written."""
    for path in (run.state, run.previous_state):
        if path.exists():
            load_state(path)
    for path in run.path.glob("*.safetensors"):
        load_weights(path)
    assert run.state.exists() or run.previous_state.exists() or not run.last.exists()
    assert not run.damaged_state.exists()


def differences(left, right):
    """Names the files of two runs whose contents differ; speeds and times are no results."""
    names = sorted(path.name for path in left.glob("*.safetensors"))
    wrong = [] if names == sorted(path.name for path in right.glob("*.safetensors")) else ["files"]
    for name in names:
        a, b = load_file(left / name), load_file(right / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            wrong.append(name)
    for name in ("steps.csv", "confusion.csv", "classes.csv"):
        if (left / name).read_text() != (right / name).read_text():
            wrong.append(name)
    tables = [[line.split(",") for line in (run / "summary.csv").read_text().splitlines()] for run in (left, right)]
    speed = tables[0][0].index("train_images_per_second")
    if [row[:speed] + row[speed + 1:] for row in tables[0]] != [row[:speed] + row[speed + 1:] for row in tables[1]]:
        wrong.append("summary.csv")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--more", nargs="*", default=[], help="flags of the training, without their dashes, K=V")
    args = parser.parse_args()
    torch.set_num_threads(1)
    moments = random.Random(args.seed)
    more = [part for item in args.more for part in ("--" + item.split("=")[0], item.split("=")[1])]
    whole, killed = args.folder / "whole", args.folder / "killed"

    begin = time.monotonic()
    child = start(whole, args.folder / "whole.log", more)
    steps = whole / "run" / "steps.csv"
    while wait(child, 0.01) is None and not (steps.exists() and len(steps.read_text().splitlines()) > 1):
        pass
    setup = time.monotonic() - begin
    code = wait(child, 600)
    assert code == 0, (args.folder / "whole.log").read_text()
    work = time.monotonic() - begin - setup

    run, kills, begun = RunDirectory(killed / "run"), 0, 0
    while kills < args.kills:
        child = start(killed, args.folder / "killed.log", more)
        code = wait(child, moments.uniform(0, setup + 2 * work / args.kills))
        if code is not None:
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        begun += run.state.exists()
        check_files(run)
    if code is None:
        code = wait(start(killed, args.folder / "killed.log", more), 600)
    log = (args.folder / "killed.log").read_text()
    assert code == 0, log
    print(json.dumps({"kills": kills, "with_state": begun, "differences": differences(whole / "run", killed / "run"),
                      "warnings": log.count("warning"), "setup": setup, "work": work,
                      "seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main()
