"""What a run writes down while it goes: a table of epochs, one of steps, and events for TensorBoard."""
import csv
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import vmamba

from ..errors import require
from .loop import Progress
from .run_directory import RunDirectory, atomic_path

__all__ = ["RunLog", "read_rows", "write_environment", "write_rows"]

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


class RunLog:
    """Writes `summary.csv`, `steps.csv` and, if asked for, TensorBoard events.

    What is there from beyond `progress` is dropped: the run is about to make it again.

    Args:
        run: where the files go.
        progress: where the run continues.
        tensorboard: write events.
        total_steps: steps of an epoch, for the position of events.

    Raises:
        UserError: tensorboard is not installed, or a file cannot be written.
    """

    def __init__(self, run: RunDirectory, progress: Progress, tensorboard: bool, total_steps: int):
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
        if tensorboard:
            require("tensorboard")
            self.events = require("torch.utils.tensorboard").SummaryWriter(
                str(run.events), purge_step=progress.epoch * total_steps + progress.step + 1)

    def step(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Adds a step: epoch from 0, step from 1."""
        self.steps.write(f"{epoch},{step},{loss!r},{lr!r}\n")
        if self.events is not None:
            position = epoch * self.total_steps + step
            self.events.add_scalar("step/loss", loss, position)
            self.events.add_scalar("step/lr", lr, position)

    def epoch(self, row: dict[str, Any]) -> None:
        """Adds a finished epoch; `row["epoch"]` counts from 0."""
        self.rows.append(row)
        write_rows(self.run.summary, self.rows)
        if self.events is not None:
            for name, value in row.items():
                if name != "epoch":
                    self.events.add_scalar(f"epoch/{name}", value, (row["epoch"] + 1) * self.total_steps)
            self.events.flush()

    def close(self) -> None:
        """Closes the files."""
        self.steps.close()
        if self.events is not None:
            self.events.close()


def write_environment(run: RunDirectory, argv: Sequence[str], device: str, world_size: int) -> None:
    """Adds to `environment.json` what runs now: command, time, commit, versions and machine."""
    starts = json.loads(run.environment.read_text()) if run.environment.exists() else []
    starts.append({
        "command": shlex.join(["python", run.tool, *argv]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "versions": {"vmamba": vmamba.__version__, "torch": torch.__version__, "python": platform.python_version(), **{
            name: importlib.metadata.version(name) for name in ("timm", "numpy", "safetensors")}},
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device,
        "processes": world_size,
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
    })
    with atomic_path(run.environment) as temporary:
        temporary.write_text(json.dumps(starts, indent=2))


def _commit() -> str:
    """Returns the commit of this checkout, with "+" where tracked files differ from it; "" outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:     # no git
        return ""
    return "" if commit.returncode else commit.stdout.strip() + ("+" if changed.returncode == 1 else "")
