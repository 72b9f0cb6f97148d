#!/usr/bin/env python3
r"""Train a model with the suite's operators and with their references side by side, and draw both curves of the loss.

The references are plain torch, the scans step by step (`vmamba.ops.ReferenceOperators`). All runs begin with the same
weights and see the same batches in the same order, without augmentation or dropout, so whatever their losses differ by
comes from the operators and from rounding. How much rounding alone does, the references without autocast show, which
run too where --amp-dtype is given.

Scans step by step take as many launches as a map has positions: keep the images small.

Examples:
    python tools/compare_training.py vmamba_tiny_s1l8 --amp-dtype bfloat16 --results-file benchmarks/curves_gpu.csv \
        --plot docs/images/training_curves.png
    python tools/compare_training.py test_vmamba --device cpu --img-size 32 --batch-size 8 --steps 5
"""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import _bench
import torch
from benchmark import build_model
from timm.data import create_transform

from vmamba.data import BUNDLED, BundledDataset
from vmamba.errors import require, tool
from vmamba.ops import ReferenceOperators
from vmamba.train.model import build_classifier

COLUMNS = ("model", "dataset", "operators", "amp_dtype", "img_size", "batch_size", "steps", "lr", "first_loss",
           "last_loss", "difference", "losses")
LAST = 20  # steps over which the last loss is averaged
WARMUP = 50  # steps in which the learning rate rises; without, the loss jumps at first and chance decides what follows
SEED = 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="timm model name")
    add("--dataset", choices=sorted(BUNDLED), default="mnist5k", help="bundled dataset, its training part (mnist5k)")
    add("--img-size", type=_bench.positive, default=64, metavar="N", help="side that images are resized to (64)")
    add("--batch-size", type=_bench.positive, default=64, metavar="N", help="images a step (64)")
    add("--steps", type=_bench.positive, default=300, metavar="N", help="training steps (300)")
    add("--lr", type=float, default=5e-4, metavar="RATE", help="AdamW learning rate, constant from step 50 on (5e-4)")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="run forward and loss under autocast (default: float32)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=_bench.positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--results-file", type=Path, metavar="CSV", help="append a row for each run to this file")
    add("--plot", type=Path, metavar="PNG", help="draw the curves")
    return parser.parse_args(argv)


def load_images(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images [N, 3, H, W] and labels [N] of the dataset, on the device."""
    dataset = BundledDataset(args.dataset)
    dataset.transform = create_transform((3, args.img_size, args.img_size), crop_pct=1.0)
    images, labels = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    return torch.stack(images).to(args.device), torch.tensor(labels, device=args.device)


def train(
        images: torch.Tensor, labels: torch.Tensor, reference: bool, amp_dtype: str, args: argparse.Namespace,
) -> list[float]:
    """Losses of all steps of one run.

    Args:
        images: [N, 3, H, W].
        labels: [N].
        reference: By the operators' references.
        amp_dtype: Type of autocast, "" for none.
        args: Model, steps, batch size, learning rate, device.
    """
    torch.manual_seed(SEED)
    model, _ = build_model(args.model, args.img_size, args.device, num_classes=int(labels.max()) + 1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))
    scaler = torch.amp.GradScaler(args.device.type, enabled=amp_dtype == "float16")
    autocast = torch.autocast(
        args.device.type, dtype=getattr(torch, amp_dtype or "bfloat16"), enabled=bool(amp_dtype))
    draw = torch.Generator().manual_seed(SEED)
    losses = []
    for step in range(args.steps):
        chosen = torch.randint(len(labels), (args.batch_size,), generator=draw).to(args.device)
        optimizer.zero_grad()
        with ReferenceOperators() if reference else contextlib.nullcontext(), autocast:
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        warmup.step()
        losses.append(loss.detach())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}", file=sys.stderr)
    return torch.stack(losses).tolist()


def last_loss(losses: Sequence[float]) -> float:
    """Mean over the last steps."""
    return sum(losses[-LAST:]) / len(losses[-LAST:])


def plot(curves: Mapping[str, Sequence[float]], title: str, path: Path) -> None:
    """The loss of every step, one line a run, and what each run's differs by from the first's."""
    figure = require("matplotlib.figure").Figure(figsize=(7, 5.5), layout="constrained", dpi=100)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    first = next(iter(curves.values()))
    for i, (name, losses) in enumerate(curves.items()):
        steps = range(1, len(losses) + 1)
        above.plot(steps, losses, label=name, linewidth=2.5 - 0.8 * i, alpha=0.9)
        below.plot(steps, [a - b for a, b in zip(losses, first, strict=True)], linewidth=1)
    above.set_title(title, fontsize=10)
    above.set_ylabel("training loss")
    above.set_ylim(bottom=0)
    above.legend()
    below.set_ylabel(f"difference to\n{next(iter(curves))}")
    below.set_xlabel("step")
    for axis in (above, below):
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    build_classifier(args.model, device="meta")  # a wrong name is known at once
    report = _bench.Report(COLUMNS, args.device, args.results_file)
    images, labels = load_images(args)
    amp_dtype = args.amp_dtype or ""
    runs = [(True, amp_dtype), (False, amp_dtype)] + [(True, "")] * bool(amp_dtype)
    curves: dict[str, list[float]] = {}
    for reference, dtype in runs:
        name = f"{'references' if reference else 'operators'}, {dtype or 'float32'}"
        print(f"training with {name}", file=sys.stderr)
        losses = train(images, labels, reference, dtype, args)
        curves[name] = losses
        first = next(iter(curves.values()))
        report.add([{
            "model": args.model, "dataset": args.dataset, "operators": "reference" if reference else "auto",
            "amp_dtype": dtype, "img_size": f"{args.img_size}x{args.img_size}", "batch_size": args.batch_size,
            "steps": args.steps, "lr": args.lr, "first_loss": f"{losses[0]:.4f}",
            "last_loss": f"{last_loss(losses):.4f}",
            "difference": f"{max(abs(a - b) for a, b in zip(losses, first, strict=True)):.4f}",
            "losses": " ".join(f"{loss:.4f}" for loss in losses)}])
    print(_bench.markdown_table(COLUMNS[:-1], report.rows))
    if args.plot:
        plot(curves, f"{args.model} on {args.dataset}, {args.img_size} x {args.img_size}, batches of {args.batch_size}",
             args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
