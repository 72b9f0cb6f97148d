"""``analyze.py repair``: mends flawed states of a trained classifier by fine-tuning."""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from vmamba.data import create_dataset, create_eval_loader
from vmamba.data.masked_images import augmented_view, evaluation_view
from vmamba.errors import UserError, require
from vmamba.tasks.loop import Training, add_run_arguments, read_options, run_folder, run_training
from vmamba.train.arguments import Parser, add_model_arguments
from vmamba.train.checkpoint import Description, save_weights
from vmamba.train.evaluation import evaluate
from vmamba.train.loop import create_autocast
from vmamba.train.model import load_classifier
from vmamba.train.validate import checkpoint_arguments

from ..correlation import STATES, Correlation, Tap, state_correlations
from ..repair import ClassTemplates, RepairTask
from .correlation import add_tap_arguments, chosen_layers, labelled_images

__all__ = ["main", "parser"]

WEIGHTS = "repaired.safetensors"


def parser() -> Parser:
    """The command's parser."""
    parser = Parser(
        prog="analyze.py repair", usage="%(prog)s --checkpoint FILE --data-dir DIR [options]",
        description="Fine-tune a trained classifier so that its states speak for the class on the object, and in the "
        "dimensions that images of the class have in common. A run directory holds tables, curves, and "
        f"{WEIGHTS}, which the other tools read.")
    checkpoint_arguments(parser)
    add_model_arguments(parser)
    add_run_arguments(parser)
    parser.set_defaults(val_split="validation", lr=1e-4, epochs=5)
    group = add_tap_arguments(parser)
    add = group.add_argument
    add("--masks", metavar="DIR", help="folder of the masks of objects: DIR/SPLIT/CLASS/NAME.png")
    add("--external-states", nargs="*", choices=STATES, default=["c", "s"], metavar="STATE",
        help="states that are to speak on the object; needs --masks")
    add("--internal-states", nargs="*", choices=STATES, default=["x"], metavar="STATE",
        help="states that are to speak in their class's dimensions")
    add("--external", type=float, default=1.0, metavar="X",
        help="weight of the external loss, whose mean on the trained model counts as 1")
    add("--internal", type=float, default=1.0, metavar="X", help="weight of the internal loss, likewise")
    add("--smoothing", type=float, default=0.1, metavar="X", help="label smoothing")
    add("--scale", type=float, nargs=2, default=[0.7, 1.0], metavar="X", help="part of the image that crops take")
    add("--hflip", type=float, default=0.0, metavar="P", help="probability of a mirrored image")
    return parser


def main(argv: list[str]) -> int:
    """Mends as the command line says and returns the exit code."""
    args, device = read_options(parser(), argv)
    _check(args)
    model, description = load_classifier(args)
    model.to(device)
    layers = chosen_layers(model, args.layers)
    external = [Tap(x, state) for x in layers for state in args.external_states] if args.masks and args.external else []
    internal = [Tap(x, state) for x in layers for state in args.internal_states] if args.internal else []
    config = description.data_config
    masks = Path(args.masks) if args.masks else None

    def images(split: str, view: Any) -> Any:
        return labelled_images(args, split, description, view, masks / split if masks else None)

    plain = images(args.train_split, evaluation_view(config))
    train = images(args.train_split, augmented_view(config, tuple(args.scale), args.hflip))
    evaluation = create_eval_loader(
        create_dataset("", args.data_dir, args.val_split, class_map=_classes(description),
                       input_img_mode="L" if config["input_size"][0] == 1 else "RGB"),
        config, device, batch_size=args.batch_size, workers=args.workers)
    folder = run_folder(args, f"repair-{description.architecture}")
    task = RepairTask(
        model, external, internal, criterion_kwargs={"loss_type": "ce", "smoothing": args.smoothing}, device=device,
        verbose=False)
    _measure(task, _batches(plain, args, device), description, args)

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        pixels, labels, objects = (t.to(device) for t in batch)
        return task(pixels, labels, objects)["loss"]

    def accuracy() -> dict[str, float]:
        result = evaluate(model, evaluation, description.num_classes, device, create_autocast(args, device))
        return {"top1": result.top1, "val_loss": result.loss}

    before = accuracy()["top1"]
    print(f"{len(train)} training images; {description.architecture} on {device}, top-1 {before:.2f} % before; run "
          f"{folder}", flush=True)
    best = run_training(Training(
        model, loss, accuracy, "top1", train, {"model": description.architecture}, args, folder))
    description.metrics = {"top1": best}
    save_weights(folder / WEIGHTS, load_file(folder / "model_best.safetensors"), description)
    print(f"top-1 {best:.2f} %, was {before:.2f} %; weights in {folder / WEIGHTS}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that cannot be."""
    if not args.checkpoint and not (args.model and args.pretrained):
        raise UserError("nothing to repair: give --checkpoint FILE, or --model NAME --pretrained")
    if args.amp:
        raise UserError("--amp: gradients of gradients are too small for 16 bits; leave it out")
    for name in ("external", "internal"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must not be negative")
    if not (args.masks and args.external and args.external_states) and not (args.internal and args.internal_states):
        raise UserError("nothing to repair by: --external needs --masks, --internal needs --internal-states")
    if not 0 < args.scale[0] <= args.scale[1] <= 1:
        raise UserError(f"--scale needs two numbers, 0 < least <= greatest <= 1, got {args.scale}")


def _classes(description: Description) -> dict[str, int] | None:
    return {name: i for i, name in enumerate(description.label_names)} or None


def _batches(dataset: Any, args: argparse.Namespace, device: torch.device) -> Iterator[list[Tensor]]:
    """The training images as evaluation sees them, with classes and objects."""
    loader = DataLoader(dataset, batch_size=args.batch_size, num_workers=args.workers)
    for batch in require("tqdm").tqdm(loader, desc="templates", unit="batch", leave=False, disable=None):
        yield [t.to(device) for t in batch]


def _measure(
        task: RepairTask, batches: Iterator[list[Tensor]], description: Description, args: argparse.Namespace) -> None:
    """Finds the templates of the classes and, of the untouched model, the losses that weights are relative to."""
    model: Any = task.trainable_module
    model.eval()
    collected = ClassTemplates(description.num_classes, args.confident, args.threshold)
    found: list[tuple[dict[Tap, Correlation], Tensor]] = []
    taps = list(dict.fromkeys([*task.external, *task.internal]))
    count = 0
    totals = {"external": 0.0, "internal": 0.0}
    for pixels, labels, objects in batches:
        logits, correlations = state_correlations(model, pixels, labels, taps)
        inner = {tap: correlations[tap] for tap in task.internal}
        collected.add(logits, labels, inner)
        found.append((inner, labels))
        totals["external"] += float(task.losses(correlations, labels, objects)["external"]) * len(labels)
        count += len(labels)
    if task.internal:
        task.templates = {tap: t.to(task.device) for tap, t in collected.templates().items()}
        for correlations, labels in found:
            totals["internal"] += float(task.losses(correlations, labels, None)["internal"]) * len(labels)
        empty = int((collected.counts[:len(description.label_names) or None] == 0).sum())
        if empty:
            print(f"note: {empty} classes have no simple image and stay without a template", flush=True)
    for name in totals:
        mean = totals[name] / count
        weight = getattr(args, name) / mean if mean > 0 else 0.0
        setattr(task, f"{name}_weight", weight)
        print(f"{name} loss of the trained model {mean:.3g}, weight {weight:.3g}", flush=True)
