"""What a run writes down while it goes: a table of epochs, one of steps, and for TensorBoard and Weights & Biases."""
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import vmamba

from ..errors import UserError, require
from .loop import Progress
from .run_directory import RunDirectory, atomic_path

__all__ = ["RunLog", "read_rows", "require_trackers", "write_environment", "write_rows"]

_PACKAGES = ("timm", "torchvision", "triton", "numpy", "pillow", "safetensors", "torchmetrics", "albumentations",
             "opencv-python-headless", "datasets", "webdataset", "tensorflow-datasets", "scikit-learn", "mlxtend",
             "scikit-image")
_STEP_COLUMNS = ("epoch", "step", "loss", "lr")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file with a header; a row that was cut short is left out, a missing file has no rows."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a CSV file with a header, whole or not at all; its columns are those of the first row."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def require_trackers(args: Namespace) -> None:
    """Raises a `UserError` if TensorBoard or Weights & Biases was asked for and is not installed."""
    if args.tensorboard:
        require("tensorboard")
    if args.wandb:
        require("wandb", "wandb")


class RunLog:
    """Writes `summary.csv`, `steps.csv` and, if asked for, TensorBoard events and a run of Weights & Biases.

    What is there from beyond `progress` is dropped: the run is about to make it again.

    Args:
        run: where the files go.
        progress: where the run continues.
        options: of the run; `tensorboard` and `wandb` say what to write beside the tables.
        total_steps: steps of an epoch, for the position of events.

    Raises:
        UserError: a package is missing, Weights & Biases cannot be reached, or a file cannot be written.
    """

    def __init__(self, run: RunDirectory, progress: Progress, options: Mapping[str, Any], total_steps: int):
        self.run, self.total_steps = run, total_steps
        self.rows: list[dict[str, Any]] = [
            row for row in read_rows(run.summary) if int(row["epoch"]) < progress.epoch]
        if self.rows:
            write_rows(run.summary, self.rows)
        else:
            run.summary.unlink(missing_ok=True)
        here = (progress.epoch, progress.step)
        kept = [row for row in read_rows(run.steps) if (int(row["epoch"]), int(row["step"])) <= here]
        with atomic_path(run.steps) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _STEP_COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        # line by line, so that a killed run leaves whole lines
        self.steps = open(run.steps, "a", newline="", encoding="utf-8", buffering=1)    # noqa: SIM115
        self.events: Any = None
        if options["tensorboard"]:
            self.events = require("torch.utils.tensorboard").SummaryWriter(
                str(run.events), purge_step=progress.epoch * total_steps + progress.step + 1)
        self.wandb: Any = _start_wandb(run, options) if options["wandb"] else None

    def step(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Adds a step: epoch from 0, step from 1."""
        self.steps.write(f"{epoch},{step},{loss!r},{lr!r}\n")
        if self.events is not None:
            position = epoch * self.total_steps + step
            self.events.add_scalar("step/loss", loss, position)
            self.events.add_scalar("step/lr", lr, position)
        if self.wandb is not None:
            self.wandb.log({"step/loss": loss, "step/lr": lr}, step=epoch * self.total_steps + step)

    def epoch(self, row: dict[str, Any]) -> None:
        """Adds a finished epoch; `row["epoch"]` counts from 0."""
        self.rows.append(row)
        write_rows(self.run.summary, self.rows)
        if self.events is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.events.add_scalar(f"epoch/{name}", value, (row["epoch"] + 1) * self.total_steps)
            self.events.flush()
        if self.wandb is not None:
            values = {f"epoch/{name}": value for name, value in row.items()}
            self.wandb.log(values, step=(row["epoch"] + 1) * self.total_steps)

    def close(self, failed: bool = False) -> None:
        """Closes the files; `failed` says how the run ended."""
        self.steps.close()
        if self.events is not None:
            self.events.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(failed))


def _start_wandb(run: RunDirectory, options: Mapping[str, Any]) -> Any:
    """Starts, or continues, the run of Weights & Biases that belongs to this one."""
    wandb = require("wandb", "wandb")
    # a resumed run has the number of its first start
    first = json.loads(run.environment.read_text())[0]["time"]
    number = hashlib.sha256(f"{run.path.absolute()} {first}".encode()).hexdigest()[:16]
    try:
        return wandb.init(project=options["wandb"], name=run.path.name, id=number, resume="allow", dir=str(run.path),
                          config=dict(options))
    except (wandb.Error, OSError) as error:
        raise UserError(f"cannot start Weights & Biases: {error}; WANDB_MODE=offline needs no account") from error


def write_environment(run: RunDirectory, argv: Sequence[str], device: str, world_size: int) -> None:
    """Adds to `environment.json` what runs now: command, time, commit, versions and machine."""
    starts = json.loads(run.environment.read_text()) if run.environment.exists() else []
    starts.append({
        "command": shlex.join(["python", run.tool, *argv]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "versions": _versions(),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "processes": world_size,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    })
    with atomic_path(run.environment) as temporary:
        temporary.write_text(json.dumps(starts, indent=2))


def _versions() -> dict[str, str]:
    """Returns the versions of everything that results may depend on, of what is installed."""
    versions = {"vmamba": vmamba.__version__, "python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        versions |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _commit() -> str:
    """Returns the commit of this checkout, with "+" where tracked files differ from it; "" outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:     # no git
        return ""
    return "" if commit.returncode else commit.stdout.strip() + ("+" if changed.returncode == 1 else "")
