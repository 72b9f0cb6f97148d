"""What the benchmark scripts share: interleaved timing, the environment of a measurement, CSV and Markdown output."""

import argparse
import csv
import datetime
import importlib.metadata
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vmamba.env import processor_name
from vmamba.errors import UserError

ENVIRONMENT_COLUMNS = ("date", "command", "commit", "device", "threads", "torch", "timm", "vmamba")


@dataclass(frozen=True)
class Timing:
    """Times of one candidate in milliseconds, one per round, and its ratio to the baseline of the same rounds."""

    milliseconds: tuple[float, ...]
    ratio: float | None

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)

    def columns(self) -> dict[str, object]:
        """The result columns of a CSV row: median, 20 % and 80 % quantile in ms, ratio, number of rounds."""
        times = torch.tensor(self.milliseconds, dtype=torch.float64)
        low, high = times.quantile(torch.tensor([0.2, 0.8], dtype=torch.float64)).tolist()
        return {
            "median_ms": f"{self.median:.3f}",
            "p20_ms": f"{low:.3f}",
            "p80_ms": f"{high:.3f}",
            "time_ratio": "" if self.ratio is None else f"{self.ratio:.3f}",
            "num_iter": len(self.milliseconds),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on where, how long and whereto to measure."""
    add = parser.add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--num-iter", type=positive, default=20, metavar="N", help="rounds to time, at least (default 20)")
    add("--num-warm-iter", type=positive, default=3, metavar="N", help="untimed steps of each before (default 3)")
    add("--min-time", type=float, default=0.0, metavar="S", help="time each for at least S seconds in all")
    add("--results-file", type=Path, metavar="CSV", help="append the results to this file")


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def select_device(name: str, threads: int | None) -> torch.device:
    """The device called `name`, after setting the number of CPU threads.

    Raises:
        UserError: there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}': give cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported: give cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("no CUDA device is available; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"there is no {device}: this machine has {torch.cuda.device_count()} CUDA device(s)")
        torch.cuda.set_device(device.index or 0)
    return device


def time_once(step: Callable[[], object], device: torch.device) -> float:
    """Run `step` once and return its time in milliseconds; CUDA events on a GPU, the wall clock on a CPU."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3


def time_interleaved(
        steps: Mapping[str, Callable[[], object]],
        device: torch.device,
        *,
        num_iter: int,
        min_time: float = 0.0,
        baseline: str | None = None,
) -> dict[str, Timing]:
    """Time several candidates round by round, so that whatever else the machine does hits all of them alike.

    Each round runs every candidate once, and starts one candidate later than the round before.

    Args:
        steps: What to run, by name. Warm-up is the caller's.
        device: Where the candidates run.
        num_iter: Least number of rounds.
        min_time: Go on until every candidate has run for this many seconds in all.
        baseline: Candidate that the others are compared with. A candidate's ratio is the median, over the rounds, of
            its time divided by the baseline's time in the same round: above 1 is slower than the baseline.

    Returns:
        The timing of each candidate.
    """
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    rounds = 0
    while rounds < num_iter or min(map(sum, times.values())) < min_time * 1e3:
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(time_once(steps[name], device))
        rounds += 1
    base = times.get(baseline) if baseline is not None else None
    return {
        name: Timing(tuple(ms), statistics.median(a / b for a, b in zip(ms, base, strict=True)) if base else None)
        for name, ms in times.items()
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Short commit of this checkout, with "+" where tracked files differ from it; empty outside of a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=root, capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed else "")


def device_name(device: torch.device) -> str:
    """Marketing name of the device, e.g. "NVIDIA H200" or the processor's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def environment(device: torch.device) -> dict[str, object]:
    """When, from what and on what a measurement was taken: the columns of `ENVIRONMENT_COLUMNS`."""
    script = Path(sys.argv[0])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "command": shlex.join(["python", f"{script.parent.name}/{script.name}", *sys.argv[1:]]),
        "commit": _commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "vmamba": _version("vmamba"),
    }


class Report:
    """Rows of one run: appended to a CSV file as they come, printed as a Markdown table at the end."""

    def __init__(self, columns: Sequence[str], device: torch.device, path: Path | None):
        """Check, before anything is measured, that rows can be appended to the file.

        Args:
            columns: The benchmark's own columns; those of `ENVIRONMENT_COLUMNS` follow them in the file.
            device: Where the run measures.
            path: CSV file, new or with the same columns; None writes none.

        Raises:
            UserError: the file has other columns, or cannot be written.
        """
        self.columns = [*columns, *ENVIRONMENT_COLUMNS]
        self.env = environment(device)
        self.path = path
        self.rows: list[Mapping[str, object]] = []
        if path is None:
            return
        try:
            with path.open("a+", newline="") as file:
                file.seek(0)
                header = next(csv.reader(file), None)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        if header is not None and header != self.columns:
            raise UserError(f"{path} has other columns than this benchmark writes; give a new file")

    def add(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Keep rows of the benchmark's own columns, and append them to the file; a new file gets a header."""
        self.rows += rows
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerows({**row, **self.env} for row in rows)

    def print(self, columns: Sequence[str], baseline: str) -> None:
        """Print the named columns of all rows, what the ratio means, and where the figures come from."""
        if not self.rows:
            return
        env = self.env
        print(markdown_table(columns, self.rows))
        print(f"\ntime_ratio: time over the time of {baseline}, median over the interleaved rounds")
        print(f"\n{env['command']}\n{env['device']}, {env['threads']} CPU threads, torch {env['torch']}, "
              f"timm {env['timm']}, vmamba {env['vmamba']} ({env['commit'] or 'no commit'}), {env['date']}")


def markdown_table(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of the named columns; numbers align right."""
    cells = [[str(row[column]) for column in columns] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) for i, name in enumerate(columns)]

    def line(values: Sequence[str]) -> str:
        padded = (v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(values, widths, strict=True)))
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([line(columns), rule, *map(line, cells)])
