"""The training loop of the tasks: epochs over a data set, evaluation, the best weights, resuming."""
import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vmamba.data.order import EpochBatches, SeededDataset, seed_all
from vmamba.errors import UserError, require
from vmamba.train.config import dump_config, load_config
from vmamba.train.run_directory import atomic_path, check_writable, make_folder
from vmamba.train.validate import resolve_device

__all__ = ["Training", "add_run_arguments", "load_model_file", "read_options", "run_folder", "run_training"]

_KEY = "vmamba_task"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds data folders, optimisation, schedule and run directory."""
    add = parser.add_argument_group("data").add_argument
    add("--data-dir", metavar="DIR", help="folder of the data set")
    add("--train-split", default="train", metavar="NAME", help="folder of the training split in it")
    add("--val-split", default="val", metavar="NAME", help="folder of the validation split")
    add = parser.add_argument_group("training").add_argument
    add("-c", "--config", metavar="FILE", help="YAML file of options; flags override it")
    add("--epochs", type=int, default=20, metavar="N", help="epochs")
    add("-b", "--batch-size", type=int, default=16, metavar="N", help="samples a step")
    add("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate; cosine decay to 0")
    add("--warmup-epochs", type=int, default=1, metavar="N", help="epochs of warm-up")
    add("--weight-decay", type=float, default=5e-4, metavar="X", help="weight decay of AdamW")
    add("--clip-grad", type=float, default=5.0, metavar="X", help="greatest norm of the gradient")
    add("--seed", type=int, default=42, metavar="N", help="random seed")
    add("-j", "--workers", type=int, default=2, metavar="N", help="loader processes")
    add("--threads", type=int, metavar="N", help="CPU threads of PyTorch (default: its own choice)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    add("--amp", action=argparse.BooleanOptionalAction, default=False, help="bfloat16 by torch.autocast")
    add("--output", default="runs", metavar="DIR", help="folder of the run directories")
    add("--experiment", default="", metavar="NAME", help="name of the run directory (default: the time)")
    add("--resume", action=argparse.BooleanOptionalAction, default=False, help="go on with the run of that name")


def read_options(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, torch.device]:
    """Parses the command line, over the file of `--config`, and sets up threads and device.

    Raises:
        UserError: a bad flag or file, no data set, or no such device.
    """
    config = parser.parse_args(argv).config
    if config:
        parser.set_defaults(**load_config(config, parser))
    args = parser.parse_args(argv)
    if not args.data_dir:
        raise UserError("no data set: give --data-dir DIR")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, resolve_device(args.device)


@dataclass
class Training:
    """What is trained and how.

    Attributes:
        model: the model, on its device.
        loss: loss of a batch as the loader gives it.
        evaluate: metrics of the validation set by name.
        main_metric: the one that is to grow.
        dataset: training set.
        description: what builds the model anew; written into the files of weights.
        args: of `add_run_arguments`.
        folder: run directory.
        max_unreadable: files an epoch that may be unreadable, each named and replaced by its neighbour.
    """

    model: nn.Module
    loss: Callable[[Any], Tensor]
    evaluate: Callable[[], dict[str, float]]
    main_metric: str
    dataset: Dataset
    description: dict[str, Any]
    args: argparse.Namespace
    folder: Path
    max_unreadable: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)


def run_folder(args: argparse.Namespace, name: str) -> Path:
    """The run directory that the options ask for.

    Raises:
        UserError: it holds a run that is not to be resumed, or none that could be, or cannot be written.
    """
    folder = Path(args.output) / (args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")
    check_writable(folder)
    if args.resume and not (folder / "resume.pt").exists():
        raise UserError(f"there is nothing to resume in {folder}")
    if not args.resume and (folder / "summary.csv").exists():
        raise UserError(f"{folder} holds a run: continue it with --resume, or choose another --experiment")
    return folder


def run_training(training: Training) -> float:
    """Trains to the end and returns the best value of the main metric.

    Each epoch is evaluated and saved. A run that was interrupted and resumed draws what an uninterrupted one does.

    Raises:
        UserError: the training set is smaller than a batch, or the loss is not finite.
    """
    args, model = training.args, training.model
    batches = EpochBatches(len(training.dataset), args.batch_size, seed=args.seed)      # type: ignore[arg-type]
    if len(batches) == 0:
        raise UserError(f"the training set has {batches.length} samples, fewer than one batch of {args.batch_size}: "
                        "give a smaller --batch-size")
    samples = SeededDataset(training.dataset, training.max_unreadable)
    loader = DataLoader(samples, batch_sampler=batches, num_workers=args.workers)
    optimizer = create_optimizer_v2(model, "adamw", lr=args.lr, weight_decay=args.weight_decay)
    schedule = CosineLRScheduler(
        optimizer, t_initial=args.epochs * len(batches), warmup_t=args.warmup_epochs * len(batches),
        warmup_lr_init=args.lr / 100, t_in_epochs=False)
    first = _restore(training, optimizer) if args.resume else 0
    make_folder(training.folder)
    with atomic_path(training.folder / "args.yaml") as path:
        path.write_text(dump_config(vars(args)))
    for epoch in range(first, args.epochs):
        begin = time.perf_counter()
        batches.epoch, samples.unreadable.value = epoch, 0
        seed_all(args.seed, epoch)
        loss = _train_epoch(training, loader, optimizer, schedule, epoch * len(batches))
        model.eval()
        metrics = training.evaluate()
        best = max((row[training.main_metric] for row in training.rows), default=float("-inf"))
        training.rows.append({"epoch": epoch + 1, "train_loss": loss, **metrics})
        improved = metrics[training.main_metric] > best
        _save(training, optimizer, improved)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  {shown}  {time.perf_counter() - begin:.1f} s"
              f"{'  best' if improved else ''}", flush=True)
    return max((row[training.main_metric] for row in training.rows), default=float("nan"))


def _train_epoch(
    training: Training, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: Any, updates: int
) -> float:
    """Trains one epoch and returns its mean loss."""
    args = training.args
    training.model.train()
    total = 0.0
    bar = require("tqdm").tqdm(loader, unit="batch", leave=False, disable=None, file=sys.stderr)
    for step, batch in enumerate(bar):
        schedule.step_update(updates + step)
        with torch.autocast(torch.device(args.device).type, torch.bfloat16) if args.amp else nullcontext():
            loss = training.loss(batch)
        if not bool(torch.isfinite(loss)):
            raise UserError(f"the training loss became {loss.item()} at step {updates + step + 1}: lower --lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(training.model.parameters(), args.clip_grad)
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def _save(training: Training, optimizer: torch.optim.Optimizer, improved: bool) -> None:
    """Writes weights, state and table of an epoch."""
    state = {k: v.detach().cpu().contiguous() for k, v in training.model.state_dict().items()}
    for name in ("last", *(("model_best",) if improved else ())):
        with atomic_path(training.folder / f"{name}.safetensors") as path:
            save_file(state, path, metadata={"format": "pt", _KEY: json.dumps(training.description)})
    with atomic_path(training.folder / "resume.pt") as path:
        torch.save({"model": state, "optimizer": optimizer.state_dict(), "rows": training.rows}, path)
    with atomic_path(training.folder / "summary.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, training.rows[0].keys())
        writer.writeheader()
        writer.writerows(training.rows)
    _plot(training)


def _plot(training: Training) -> None:
    """Draws loss and metrics of all epochs to `curves.png`."""
    figure = require("matplotlib.figure").Figure(figsize=(8, 3.6), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in training.rows]
    marker = "o" if len(epochs) == 1 else None      # a line of one point is invisible
    left.plot(epochs, [row["train_loss"] for row in training.rows], marker=marker)
    for name in (name for name in training.rows[0] if name not in ("epoch", "train_loss")):
        right.plot(epochs, [row[name] for row in training.rows], label=name, marker=marker)
    left.set(title="training loss", xlabel="epoch")
    right.set(title="validation", xlabel="epoch")
    right.legend(fontsize=8)
    with atomic_path(training.folder / "curves.png") as path:
        figure.savefig(path, format="png")


def _restore(training: Training, optimizer: torch.optim.Optimizer) -> int:
    """Loads the state of an earlier process and returns the number of epochs it made."""
    try:
        state = torch.load(training.folder / "resume.pt", map_location="cpu", weights_only=True)
        training.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, RuntimeError, ValueError, OSError) as error:
        raise UserError(f"cannot resume {training.folder} with these options: {error}") from error
    training.rows[:] = state["rows"]
    return len(training.rows)


def load_model_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and description of a file that a training wrote.

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(_KEY)
            state = {name: file.get_tensor(name) for name in file.keys()}      # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read checkpoint {path}: {error}") from error
    if description is None:
        raise UserError(f"{path} does not say what model it is; give a file that the training tool wrote")
    return state, json.loads(description)
