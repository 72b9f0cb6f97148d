#!/usr/bin/env python3
r"""Fine-tune on a tenth of the labels of a bundled dataset, with and without pre-training, several seeds each.

Runs are those of tools/pretrain.py and tools/train.py. Pre-training sees all training images and no label, and is done
once, with seed 0. Then, for each seed, its encoder and one from scratch are trained with the same tenth of the labelled
training images, options, order and number of steps; seed n takes the n-th tenth, so the spread has the choice of images
in it, but not that of pre-training. Nothing is chosen on the validation split: results are those after the last epoch.
A row of the results file is one fine-tuning; rows that are in the file already are not made again, and runs that were
interrupted go on where they stopped. Then means and spreads are printed, and drawn.

Examples:
    python tools/study_pretraining.py --results-file study.csv --plot study.png
    python tools/study_pretraining.py --img-size 64 --mask-size 16 --results-file study.csv --plot study.png
    python tools/study_pretraining.py --dataset digits --seeds 0 --pretrain-epochs 1 --epochs 1 --results-file trial.csv
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import _bench
import torch

from vmamba.data import BUNDLED
from vmamba.errors import UserError, require, tool
from vmamba.tasks.pretraining.model import MASK_TOKENS
from vmamba.tasks.pretraining.train import main as pretrain
from vmamba.train.fit import main as train
from vmamba.train.logs import read_rows

CONFIGS = Path(__file__).parent.parent / "configs"
STARTS = ("scratch", *MASK_TOKENS)
# what makes a fine-tuning; sizes are empty where they are the recipe's
KEYS = ("dataset", "model", "img_size", "mask_size", "start", "seed", "pretrain_epochs", "epochs")
RESULTS = ("pretrain_eval_loss", "train_loss", "eval_loss", "eval_top1")
COLUMNS = (*KEYS, "train_split", *RESULTS)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results-file", type=Path, required=True, metavar="CSV", help="file that fine-tunings are appended to")
    add("--plot", type=Path, metavar="PNG", help="draw all rows of the results file")
    add("--dataset", choices=sorted(BUNDLED), default="mnist5k", help="bundled dataset (mnist5k)")
    add("--model", default="vmamba_nano", metavar="NAME", help="a model of this suite (vmamba_nano)")
    add("--img-size", type=_bench.positive, metavar="N", help="side of the images of both, pixels (the recipe's)")
    add("--mask-size", type=_bench.positive, metavar="N", help="side of masked patches, pixels (the recipe's)")
    add("--starts", nargs="+", choices=STARTS, default=["scratch", "toki"],
        help="where fine-tuning starts: scratch, or an encoder pre-trained with these mask tokens (scratch toki)")
    add("--seeds", nargs="+", type=int, choices=range(10), default=[0, 1, 2], metavar="N", help="seeds 0 to 9 (0 1 2)")
    add("--pretrain-epochs", type=_bench.positive, default=20, metavar="N", help="epochs of pre-training (20)")
    add("--epochs", type=_bench.positive, default=40, metavar="N", help="epochs of fine-tuning (40)")
    add("--output", type=Path, default=Path("runs/study_pretraining"), metavar="DIR", help="folder of the runs")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    return parser.parse_args(argv)


def make_run(main, name: str, folder: str, args: argparse.Namespace, flags: Sequence[object]) -> dict[str, str]:
    """Makes, or finishes, a run of a training tool, and returns the last row of its table."""
    command = ["--dataset", args.dataset, "--model", args.model, "--device", args.device, "--output", args.output,
               "--experiment", name, "--auto-resume", *flags]
    if args.img_size:
        command += ["--img-size", args.img_size]
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / f"{name}.log", "a") as log, contextlib.redirect_stdout(log):
        code = main([str(word) for word in command], recipes=CONFIGS / folder)
    if code:
        raise UserError(f"the run {args.output / name} did not finish")
    return read_rows(args.output / name / "summary.csv")[-1]


def fine_tune(start: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Fine-tunes, after pre-training unless that is done or it is from scratch; gives the row of the results file."""
    part = f"train[{10 * seed}%:{10 * seed + 10}%]"
    flags = ["--seed", seed, "--epochs", args.epochs, "--warmup-epochs", min(4, args.epochs - 1), "-b", 32,
             "--lr", 1e-3, "--train-split", part]
    before: dict[str, str] = {}
    if start != "scratch":
        name = f"pretrain_{setting(start, args)}"
        before = make_run(pretrain, name, "pretraining", args, [
            "--seed", 0, "--epochs", args.pretrain_epochs, "--warmup-epochs", min(2, args.pretrain_epochs - 1),
            "--mask-token", start, *(["--mask-size", args.mask_size] if args.mask_size else [])])
        flags += ["--initial-checkpoint", args.output / name / "last.safetensors"]
    name = f"finetune_{setting(start, args)}_{args.epochs}_{seed}"
    after = make_run(train, name, "classification", args, flags)
    return {
        **dict(zip(KEYS, keys(start, seed, args), strict=True)), "train_split": part,
        "pretrain_eval_loss": f"{float(before['eval_loss']):.4f}" if before else "",
        "train_loss": f"{float(after['train_loss']):.4f}", "eval_loss": f"{float(after['eval_loss']):.4f}",
        "eval_top1": f"{float(after['eval_top1']):.2f}"}


def keys(start: str, seed: int, args: argparse.Namespace) -> tuple[str, ...]:
    """What makes a fine-tuning, as in its row."""
    before, mask_size = (0, "") if start == "scratch" else (args.pretrain_epochs, args.mask_size or "")
    return tuple(map(str, (args.dataset, args.model, args.img_size or "", mask_size, start, seed, before, args.epochs)))


def setting(start: str, args: argparse.Namespace) -> str:
    """Name of what fine-tuning starts from, for folders of runs."""
    dataset, model, img_size, mask_size, _, _, before, _ = keys(start, 0, args)
    sizes = "".join(f"_{letter}{size}" for letter, size in (("i", img_size), ("m", mask_size)) if size)
    return f"{dataset}_{model}{sizes}_{start}_{before}"


def label(row: Mapping[str, str]) -> str:
    """What is compared, in words."""
    if row["start"] == "scratch":
        return "scratch"
    patches = f", patches of {row['mask_size']}" if row["mask_size"] else ""
    return f"{row['start']}, {row['pretrain_epochs']} epochs{patches}"


def groups_of(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """Rows by what is compared, in the order of the file."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(label(row), []).append(row)
    return groups


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Means and sample standard deviations over the seeds."""
    def spread(values: list[float], digits: int) -> str:
        deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{deviation}"

    lines = [{"start": name, "seeds": len(group),
              **{title: spread([float(row[key]) for row in group], digits) for title, key, digits in (
                  ("training loss", "train_loss", 3), ("validation loss", "eval_loss", 3),
                  ("validation top-1, %", "eval_top1", 2))}}
             for name, group in groups_of(rows).items()]
    return _bench.markdown_table(list(lines[0]), lines)


def plot(rows: Sequence[Mapping[str, str]], title: str, path: Path) -> None:
    """Two panels, loss and top-1 on the validation split: a line a seed, a bar at each mean."""
    groups = groups_of(rows)
    figure = require("matplotlib.figure").Figure(figsize=(8.4, 3.4), layout="constrained", dpi=100)
    figure.suptitle(title, fontsize=9)
    panels = (("eval_loss", "validation loss"), ("eval_top1", "validation top-1, %"))
    for axis, (key, name) in zip(figure.subplots(1, 2), panels, strict=True):
        seeds = sorted({row["seed"] for row in rows})
        for seed in seeds:
            points = [(x, float(row[key])) for x, group in enumerate(groups.values()) for row in group
                      if row["seed"] == seed]
            axis.plot(*zip(*points, strict=True), "o-", markersize=4, linewidth=0.8, alpha=0.7, label=f"seed {seed}")
        for x, group in enumerate(groups.values()):
            axis.plot(x, statistics.mean(float(row[key]) for row in group), "_", color="black", markersize=26)
        axis.set_xticks(range(len(groups)), groups)
        axis.set(ylabel=name, xlim=(-0.5, len(groups) - 0.5))
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, format="png")


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    report = _bench.Report(COLUMNS, torch.device(args.device), args.results_file)
    for seed in args.seeds:
        for start in args.starts:
            done = [row for row in read_rows(args.results_file)
                    if tuple(row[key] for key in KEYS) == keys(start, seed, args)]
            row: Mapping[str, object] = done[0] if done else fine_tune(start, seed, args)
            if not done:
                report.add([row])
            print(f"{start} seed {seed}: validation loss {row['eval_loss']}, top-1 {row['eval_top1']} %"
                  f"{' (in the file)' if done else ''}", flush=True)
    rows = [row for row in read_rows(args.results_file)
            if (row["dataset"], row["model"], row["img_size"], row["epochs"]) ==
            (args.dataset, args.model, str(args.img_size or ""), str(args.epochs))]
    print(f"\n{table(rows)}")
    if args.plot:
        plot(rows, f"{args.model}, 10 % of the labels of {args.dataset}, {args.epochs} epochs", args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
