#!/usr/bin/env python3
r"""Train one small model with each scan order on the bundled datasets, several seeds each.

Runs are those of tools/train.py with a dataset's own recipe; only order and seed differ, and orders of four directions
have equally many parameters. Each run is a row of the results file: validation top-1 after the last epoch, not at the
best one. Runs that are in the file already are not repeated, so an interrupted study goes on where it stopped. Then the
mean and the spread of each order are printed, and drawn.

The datasets are small and the differences too: read them against the spread over seeds, and no further.

Examples:
    python tools/study_scans.py --results-file study.csv --plot study.png
    python tools/study_scans.py --datasets digits --scans cross hilbert4 --seeds 0 --epochs 1 --results-file trial.csv
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import _bench
import _study
import torch

from vmamba.data import BUNDLED
from vmamba.errors import UserError, require, tool
from vmamba.scans import default_directions, list_scans, scan_tokens

KEYS = ("dataset", "model", "scan", "seed", "epochs")  # what makes a run
COLUMNS = (*KEYS, "eval_top1", "train_loss")


def four_directions() -> list[str]:
    """The registered orders that any VMamba takes with as many parameters as its own order."""
    return [name for name in list_scans() if default_directions(name) == 4 and scan_tokens(name, 1, 1) == 1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results-file", type=Path, required=True, metavar="CSV", help="file that runs are appended to")
    add("--plot", type=Path, metavar="PNG", help="draw all runs of the results file")
    add("--datasets", nargs="+", choices=sorted(BUNDLED), default=sorted(BUNDLED), metavar="NAME",
        help="bundled datasets (default: all)")
    add("--scans", nargs="+", default=four_directions(), metavar="NAME",
        help="scan orders (default: all registered ones of four directions)")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="random seeds (0 1 2)")
    add("--epochs", type=int, metavar="N", help="epochs (default: the recipe's)")
    add("--model", default="vmamba_nano", metavar="NAME", help="a model that takes scan= (vmamba_nano)")
    _study.add_workers(parser)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    args = parser.parse_args(argv)
    for name in args.scans:
        try:
            default_directions(name)
        except ValueError as error:
            raise UserError(str(error)) from error
    return args


def run(dataset: str, scan: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Train once, and give the row of the results file."""
    flags = ["--dataset", dataset, "--model", args.model, "--model-kwargs", f"scan={scan}", "--seed", str(seed),
             "--device", args.device]
    flags += _study.overrides(args)
    with _study.trained(flags, f"on {dataset} with {scan}") as directory:
        epochs = _study.read(directory.summary)
    last = epochs[-1]
    return {"dataset": dataset, "model": args.model, "scan": scan, "seed": seed, "epochs": len(epochs),
            "eval_top1": f"{float(last['eval_top1']):.2f}", "train_loss": f"{float(last['train_loss']):.6f}"}


def grouped(rows: Iterable[Mapping[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Accuracies by what is compared (dataset, model and epochs), then by order."""
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[f"{row['dataset']}, {row['model']}, {row['epochs']} epochs"][row["scan"]].append(float(row["eval_top1"]))
    return groups


def plot(groups: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """A panel for each group: a dot for each run, a bar at the mean."""
    most = max(len(scans) for scans in groups.values())
    figure = require("matplotlib.figure").Figure(
        figsize=(4 * len(groups), 1.2 + 0.24 * most), layout="constrained", dpi=100)
    for axis, (title, scans) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        names = sorted(scans, key=lambda name: statistics.mean(scans[name]))
        for y, name in enumerate(names):
            axis.plot(scans[name], [y] * len(scans[name]), "o", color="tab:blue", markersize=4, alpha=0.7)
            axis.plot([statistics.mean(scans[name])], [y], "|", color="black", markersize=11)
        axis.set_yticks(range(len(names)), names)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("validation top-1 after the last epoch, %")
        axis.grid(alpha=0.3)
    figure.savefig(path, format="png")


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    report = _bench.Report(COLUMNS, torch.device(args.device), args.results_file)
    for dataset in args.datasets:
        for seed in args.seeds:
            for scan in args.scans:
                done = [row for row in _study.read(args.results_file) if is_run(row, dataset, scan, seed, args)]
                row = done[0] if done else run(dataset, scan, seed, args)
                if not done:
                    report.add([row])
                print(f"{dataset} {scan} seed {seed}: {row['eval_top1']} %{' (in the file)' if done else ''}",
                      flush=True)
    groups = grouped(_study.read(args.results_file))
    for title, scans in groups.items():
        print(f"\n{title}\n\n{_study.table('scan', scans)}")
    if args.plot:
        plot(groups, args.plot)
    return 0


def is_run(row: Mapping[str, str], dataset: str, scan: str, seed: int, args: argparse.Namespace) -> bool:
    """Whether a row of the results file is of this run; without --epochs the recipe's number counts."""
    epochs = row["epochs"] if args.epochs is None else str(args.epochs)
    return tuple(row[key] for key in KEYS) == (dataset, args.model, scan, str(seed), epochs)


if __name__ == "__main__":
    sys.exit(main())
