#!/usr/bin/env python3
r"""Draw what models of tools/train_change.py predict for pairs, beside each other, and the curves of their trainings.

    python tools/show_change.py runs/change_scenes_vmamba_nano runs/change_scenes_resnet18 \
        --data-dir data/change_scenes --predictions docs/images/change_scenes_predictions.jpg \
        --curves docs/images/change_scenes_curves.png

The pairs are the first ones of the split. In the column of a model white is change that it found, red what it found and
is none, and blue what it missed. Models are those of the best epoch.
"""
import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmamba.data.change_augmentation import ChangeTransform, normalise
from vmamba.data.change_pairs import ChangePairs
from vmamba.errors import UserError, require, tool
from vmamba.tasks.change_detection.metrics import class_maps
from vmamba.tasks.change_detection.train import build_described
from vmamba.tasks.loop import load_model_file

FOUND, FALSE, MISSED = (255, 255, 255), (230, 60, 50), (60, 110, 240)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories of models of the task 'bcd'")
    add("--data-dir", type=Path, metavar="DIR", help="data set of the pairs, in the layout of LEVIR-CD")
    add("--split", default="val", metavar="NAME", help="folder of the split in it (val)")
    add("--pairs", type=int, default=6, metavar="N", help="pairs to draw (6)")
    add("--predictions", type=Path, metavar="FILE", help="picture of the predictions to write")
    add("--curves", type=Path, metavar="FILE", help="picture of the curves to write")
    args = parser.parse_args(argv)
    if args.predictions and not args.data_dir:
        parser.error("--predictions needs --data-dir")
    if not (args.predictions or args.curves):
        parser.error("nothing to draw: give --predictions or --curves")
    return args


def load(run: Path) -> tuple[str, torch.nn.Module]:
    """The encoder's name, and the model of a run.

    Raises:
        UserError: there are no weights, or they are for another task.
    """
    state, description = load_model_file(run / "model_best.safetensors")
    if description.get("task") != "bcd":
        raise UserError(f"{run} is no run of the task 'bcd'")
    model = build_described(description)
    model.load_state_dict(state)
    return description["encoder"], model.eval()


def coloured(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Maps of change [H, W] bool, predicted and true -> hits and errors as colours [H, W, 3] uint8."""
    shown = np.zeros((*truth.shape, 3), dtype=np.uint8)
    for where, colour in ((found & truth, FOUND), (found & ~truth, FALSE), (truth & ~found, MISSED)):
        shown[where] = colour
    return shown


@torch.inference_mode()
def draw_predictions(runs: list[Path], pairs: ChangePairs, count: int) -> Any:
    """A figure with a row for each pair: both dates, the mask, and each model's map."""
    models = [load(run) for run in runs]
    count = min(count, len(pairs))
    titles = ["first date", "second date", "change", *(name for name, _ in models)]
    figure = require("matplotlib.figure").Figure(
        figsize=(1.8 * len(titles), 1.8 * count + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(count, len(titles), squeeze=False)
    for index, line in enumerate(axes):
        first, second, masks = pairs.read(index)
        truth = masks["change"] == 1
        columns = [first, second, coloured(truth, truth)]
        for _, model in models:
            found = class_maps(model(normalise(first)[None], normalise(second)[None]))["change"][0]
            columns.append(coloured(found.numpy() == 1, truth))
        for axis, image in zip(line, columns, strict=True):
            axis.imshow(image)
            axis.axis("off")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure


def read_epochs(run: Path) -> list[dict[str, str]]:
    """The rows that a training wrote for its epochs.

    Raises:
        UserError: there are none.
    """
    path = run / "summary.csv"
    if not path.is_file():
        raise UserError(f"{path} is not there: give run directories of tools/train_change.py")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(runs: list[Path]) -> Any:
    """A figure with the training loss and the validation F1 of all runs by epoch."""
    figure = require("matplotlib.figure").Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2)
    for run in runs:
        rows = read_epochs(run)
        for axis, column in zip(axes, ("train_loss", "f1"), strict=True):
            axis.plot([int(row["epoch"]) for row in rows], [float(row[column]) for row in rows], marker="o",
                      markersize=3, label=run.name)
    axes[0].set(title="training loss", xlabel="epoch")
    axes[1].set(title="F1 of held-out pairs", xlabel="epoch")
    axes[1].legend(fontsize=8)
    return figure


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    figures = {}
    if args.curves:
        figures[args.curves] = draw_curves(args.runs)
    if args.predictions:
        pairs = ChangePairs(args.data_dir, args.split, "levir", ChangeTransform(None, augment=False))
        figures[args.predictions] = draw_predictions(args.runs, pairs, args.pairs)
    for path, figure in figures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
