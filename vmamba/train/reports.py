"""What a run shows: the curves, the confusion matrix, and the commands that come next."""
import csv
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from .evaluation import Mistake
from .run_directory import RunDirectory, atomic_path

__all__ = ["format_seconds", "next_commands", "plot_confusion", "plot_curves", "plot_mistakes", "read_confusion",
           "read_mistakes", "write_classes", "write_confusion", "write_mistakes"]


def format_seconds(seconds: float) -> str:
    """Writes a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def plot_curves(run: RunDirectory) -> None:
    """Draws losses and accuracies of all epochs in `summary.csv` to `curves.png`."""
    with open(run.summary, newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    titles = ["loss", *(["validation accuracy, %"] if "eval_top1" in rows[0] else []), "learning rate"]
    figure = require("matplotlib.figure").Figure(figsize=(11 / 3 * len(titles), 4.2), layout="constrained", dpi=120)
    axes = dict(zip(titles, figure.subplots(1, len(titles)), strict=True))
    losses, rate = axes["loss"], axes["learning rate"]
    marker = "o" if len(rows) == 1 else None    # a line of one point is invisible
    losses.plot(epochs, column("train_loss"), label="training (augmented)", marker=marker)
    losses.plot(epochs, column("eval_loss"), label="validation", marker=marker)
    if "eval_ema_loss" in rows[0]:
        losses.plot(epochs, column("eval_ema_loss"), label="validation, EMA", linestyle="--", marker=marker)
    for name, label, style in (("eval_top1", "top-1", "-"), ("eval_top5", "top-5", "-"),
                               ("eval_ema_top1", "top-1, EMA", "--")):
        if name in rows[0]:
            axis = axes["validation accuracy, %"]
            axis.plot(epochs, column(name), label=label, linestyle=style, marker=marker)
            axis.legend(loc="lower right")
    rate.plot(epochs, column("lr"), color="tab:gray", marker=marker)
    for title, axis in axes.items():
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    losses.legend()
    with atomic_path(run.curves) as temporary:
        figure.savefig(temporary, format="png")


def write_confusion(path: Path, confusion: Tensor, names: list[str]) -> None:
    """Writes a confusion matrix [C, C] as CSV: a row a true class, a column a predicted class."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *names])
        writer.writerows([name, *row] for name, row in zip(names, confusion.tolist(), strict=True))


def write_classes(path: Path, confusion: Tensor, names: list[str]) -> None:
    """Writes precision, recall, F1 (percent) and images of each class, from a confusion matrix [C, C], as CSV."""
    right, true, predicted = confusion.diagonal().tolist(), confusion.sum(1).tolist(), confusion.sum(0).tolist()
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "predicted", "right", "precision", "recall", "f1"])
        for name, *row in zip(names, true, predicted, right, strict=True):
            images, guesses, good = row
            # a class without images, or never predicted, has no such share
            shares = [f"{100 * part / whole:.2f}" if whole else ""
                      for part, whole in ((good, guesses), (good, images), (2 * good, images + guesses))]
            writer.writerow([name, *row, *shares])


def read_confusion(path: Path) -> tuple[Tensor, list[str]]:
    """Reads what `write_confusion` wrote: the matrix [C, C] int64 and the class names."""
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return torch.tensor([[int(value) for value in row[1:]] for row in rows]), header[1:]


def plot_confusion(run: RunDirectory, title: str) -> None:
    """Draws `confusion.csv` to `confusion.png`: colour is the share of the true class, numbers are images."""
    confusion, names = read_confusion(run.confusion_table)
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    count = len(names)
    side = min(4 + 0.35 * count, 14)
    figure = require("matplotlib.figure").Figure(figsize=(side + 1, side), layout="constrained", dpi=120)
    axis = figure.subplots()
    picture = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="share of the true class", shrink=0.8)
    axis.set(title=title, xlabel="predicted class", ylabel="true class")
    if count <= 50:     # more names than that overlap
        axis.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(count), names)
    if count <= 20:
        for row, column in confusion.nonzero().tolist():
            axis.text(column, row, int(confusion[row, column]), ha="center", va="center", fontsize=8,
                      color="white" if share[row, column] > 0.5 else "black")
    with atomic_path(run.confusion) as temporary:
        figure.savefig(temporary, format="png")


def plot_mistakes(path: Path, mistakes: list[Mistake], dataset: Any, names: list[str]) -> None:
    """Draws a sheet of wrongly classified images, as they are before preprocessing, the most confident first."""
    columns = min(6, max(1, len(mistakes)))
    rows = max(1, -(-len(mistakes) // columns))
    figure = require("matplotlib.figure").Figure(figsize=(2 * columns, 2.4 * rows), layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    transform, dataset.transform = dataset.transform, None
    for axis, mistake in zip(axes, mistakes, strict=False):
        axis.imshow(dataset[mistake.index][0], cmap="gray")
        # names may hold what matplotlib takes for formulas
        title = (f"{names[mistake.label]}, not {names[mistake.predicted]}\n"
                 f"{100 * mistake.confidence:.1f} % sure, image {mistake.index}")
        axis.set_title(title.replace("$", r"\$"), fontsize=7)
    dataset.transform = transform
    for axis in axes:
        axis.set_axis_off()
    if not mistakes:
        axes[0].set_title("no mistakes")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def write_mistakes(path: Path, mistakes: list[Mistake], dataset: Any, names: list[str]) -> None:
    """Writes wrong predictions as CSV, with the files of the images if they are in files."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["confidence", "index", "label", "predicted", "class", "predicted_class", "file"])
        for mistake in mistakes:
            writer.writerow([*vars(mistake).values(), names[mistake.label], names[mistake.predicted],
                             dataset.filename(mistake.index) if hasattr(dataset, "filename") else ""])


def read_mistakes(path: Path) -> list[Mistake]:
    """Reads what `write_mistakes` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Mistake(float(row["confidence"]), int(row["index"]), int(row["label"]), int(row["predicted"]))
                for row in csv.DictReader(file)]


def next_commands(run: RunDirectory, args: Namespace, finished: bool) -> list[tuple[str, str]]:
    """Returns (purpose, command line) pairs for what one does with a run: validate, predict, resume."""
    best: Any = run.best
    data = ["--dataset", args.dataset] if args.dataset else []
    data += ["--data-dir", args.data_dir] if args.data_dir else []
    data += ["--class-map", args.class_map] if args.class_map else []
    ema = ["--use-ema"] if args.model_ema else []
    more = ["--resume", run.path, *(["--epochs", 2 * args.epochs] if finished else [])]
    commands = {
        "validate": ["tools/validate.py", "--checkpoint", best, *ema, *data, "--split", args.val_split],
        "predict": ["tools/predict.py", "--checkpoint", best, *ema, "IMAGE_OR_FOLDER"],
        "resume": [run.tool, *more],
    }
    return [(name, shlex.join(["python", *map(str, command)])) for name, command in commands.items()]
