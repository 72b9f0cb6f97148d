#!/usr/bin/env python3
r"""Train several models with one recipe, several seeds each, and compare what they reach.

Every model gets the same images, augmentation, optimiser and number of epochs. Each run is a row of the results file,
with the validation top-1 of the averaged weights (where the recipe has them, else of the trained ones) after the last
epoch, not at the best one; runs that are in the file already are not repeated. Then means and spreads are printed.

Without --models: vmamba_nano, timm's resnet18, and a ViT of vmamba_nano's size, by which is meant parameters.

Examples:
    python tools/study_models.py --results-file benchmarks/mnist5k.csv
    python tools/study_models.py --models vmamba_nano resnet18 --seeds 0 --epochs 1 --results-file trial.csv
"""

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import _bench
import _study
import torch

from vmamba.errors import tool
from vmamba.train.arguments import parse_train_arguments
from vmamba.train.checkpoint import load_weights
from vmamba.train.model import build_classifier

MODELS = {  # by the name in the table: timm's name and arguments
    "vmamba_nano": ("vmamba_nano", []),
    "resnet18": ("resnet18", []),
    "vit_nano": ("vit_tiny_patch16_224", ["img_size=32", "patch_size=4", "embed_dim=144", "depth=7", "num_heads=4"]),
}
KEYS = ("recipe", "model", "seed", "epochs")    # what makes a run
COLUMNS = (*KEYS, "model_args", "params_m", "top1", "top1_trained", "best_top1", "train_loss", "seconds",
           "cpu_seconds")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results-file", type=Path, required=True, metavar="CSV", help="file that runs are appended to")
    add("--recipe", type=Path, default=_study.RECIPES / "small_data.yaml", metavar="YAML",
        help="config of tools/train.py (small_data.yaml)")
    add("--models", nargs="+", default=list(MODELS), metavar="NAME",
        help=f"{', '.join(MODELS)}, or any model of timm ({' '.join(MODELS)})")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="random seeds (0 1 2)")
    add("--epochs", type=_bench.positive, metavar="N", help="epochs (default: the recipe's)")
    _study.add_workers(parser)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    args = parser.parse_args(argv)
    for name in args.models:    # a wrong one is known before the first is trained
        build_classifier(MODELS.get(name, (name, []))[0], device="meta")
    args.length = args.epochs or parse_train_arguments(["--config", str(args.recipe)]).epochs
    return args


def run(name: str, seed: int, args: argparse.Namespace) -> dict[str, object]:
    """Train once, and give the row of the results file."""
    model, model_args = MODELS.get(name, (name, []))
    flags = ["--config", str(args.recipe), "--model", model, "--seed", str(seed), "--device", args.device]
    if model_args:
        flags += ["--model-kwargs", *model_args]
    flags += _study.overrides(args)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with _study.trained(flags, f"{name} with {args.recipe.name}") as directory:
        epochs = _study.read(directory.summary)
        _, known = load_weights(directory.last)
    assert known is not None
    built = build_classifier(model, num_classes=known.num_classes, in_chans=known.in_chans, device="meta",
                             **known.model_args)
    last = epochs[-1]
    averaged = "eval_ema_top1" if "eval_ema_top1" in last else "eval_top1"
    return {
        "recipe": args.recipe.name, "model": name, "seed": seed, "epochs": len(epochs),
        "model_args": " ".join([model, *model_args]),
        "params_m": f"{sum(p.numel() for p in built.parameters()) / 1e6:.3f}",
        "top1": f"{float(last[averaged]):.2f}", "top1_trained": f"{float(last['eval_top1']):.2f}",
        "best_top1": f"{max(float(row[averaged]) for row in epochs):.2f}",
        "train_loss": f"{float(last['train_loss']):.4f}", "seconds": f"{time.perf_counter() - begin:.0f}",
        "cpu_seconds": f"{time.process_time() - begin_cpu:.0f}",
    }


def is_run(row: dict[str, str], name: str, seed: int, args: argparse.Namespace) -> bool:
    """Whether a row of the results file is of this run; without --epochs the recipe's number counts."""
    return tuple(row[key] for key in KEYS) == (args.recipe.name, name, str(seed), str(args.length))


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    report = _bench.Report(COLUMNS, torch.device(args.device), args.results_file)
    for seed in args.seeds:
        for name in args.models:
            done = [row for row in _study.read(args.results_file) if is_run(row, name, seed, args)]
            row = done[0] if done else run(name, seed, args)
            if not done:
                report.add([row])
            print(f"{name} seed {seed}: {row['top1']} %{' (in the file)' if done else ''}", flush=True)
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in _study.read(args.results_file):
        groups[f"{row['recipe']}, {row['epochs']} epochs"][row["model"]].append(float(row["top1"]))
    for title, models in groups.items():
        print(f"\n{title}\n\n{_study.table('model', models)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
