"""The command behind tools/train.py: trains what the options ask for, saves each epoch, and reports."""
import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from timm.utils import distribute_bn, init_distributed_device, trim_summary, unwrap_model, update_summary

from ..errors import UserError, tool
from .arguments import parse_train_arguments
from .build import Run, build_run
from .checkpoint import load_state, save_state, save_weights
from .config import dump_config
from .evaluation import Evaluation, evaluate
from .loop import create_autocast, seed_epoch, train_one_epoch
from .reports import next_commands, plot_confusion, plot_curves, write_confusion
from .run_directory import RunDirectory, atomic_path, check_writable

__all__ = ["main"]


@tool
def main(argv: Sequence[str] | None = None, recipes: Path | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: command line without the program name; None is `sys.argv`.
        recipes: folder of the bundled datasets' recipes.

    Returns:
        Exit code: 0, or 2 after one line on stderr that says what was wrong with the input.
    """
    args = parse_train_arguments(argv, recipes)
    options = dict(vars(args))
    directory = _run_directory(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = _init_device(args)
    try:
        run = build_run(args, directory, device)
        if args.resume:
            _restore(run)
        _train(run, options, create_autocast(args, device))
        if args.distributed:
            # the others wait for rank 0's last files: the group's threads are done with every tensor when it goes,
            # which they could not be told while its destructor holds the interpreter's lock
            torch.distributed.barrier()
    except KeyboardInterrupt:
        if directory.state.exists() and args.rank == 0:
            print(f"stopped; continue with: {next_commands(directory, args, False)[-1][1]}", file=sys.stderr)
        raise
    finally:
        if args.distributed:
            torch.distributed.destroy_process_group()
    return 0


def _run_directory(args: argparse.Namespace) -> RunDirectory:
    """Chooses the run directory and refuses one that holds another run."""
    if args.resume:
        directory = RunDirectory(args.resume).existing()
        check_writable(directory.path)
        return directory
    name = args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{(args.model or 'model').replace('/', '_')}"
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--experiment is a folder name inside --output, not a path: {name!r}")
    directory = RunDirectory(Path(args.output) / name)
    if not args.overwrite:
        directory.refuse_existing()
    check_writable(directory.path)
    return directory


def _init_device(args: argparse.Namespace) -> torch.device:
    """Starts the process group under `torchrun` and sets rank, world_size, distributed and device in `args`."""
    args.distributed = False
    try:
        torch.device(args.device)
        return init_distributed_device(args)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"cannot use --device {args.device}: {error}") from error


def _restore(run: Run) -> None:
    """Loads the state of an earlier process into `run`."""
    state = load_state(run.directory.state)
    known, now = state["description"], asdict(run.description)
    for key in ("architecture", "num_classes", "in_chans"):
        if known[key] != now[key]:
            raise UserError(f"cannot resume {run.directory.path}: its {key.replace('_', ' ')} is {known[key]}, "
                            f"not {now[key]}")
    try:
        run.task.load_checkpoint_state(state["state_dict"])
        if run.args.model_ema:
            run.task.load_checkpoint_state(state["state_dict_ema"], ema=True)
        run.optimisation.optimizer.load_state_dict(state["optimizer"])
        if run.optimisation.scaler is not None:
            run.optimisation.scaler.load_state_dict(state["scaler"])
        run.optimisation.updates = state["updates"]
        run.epoch, run.best = state["epoch"], state["best"]
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot resume {run.directory.path} with these options: {error}") from error
    _step_schedule(run)


def _step_schedule(run: Run) -> None:
    """Sets the learning rate that the next update needs."""
    run.optimisation.scheduler.step(run.epoch)
    run.optimisation.scheduler.step_update(run.optimisation.updates)


def _train(run: Run, options: dict[str, Any], autocast: AbstractContextManager) -> None:
    """Trains to the end, saving after each epoch, then reports."""
    args = run.args
    primary = args.rank == 0
    if primary:
        if not args.resume:
            run.directory.create()
        with atomic_path(run.directory.arguments) as temporary:
            temporary.write_text(dump_config(options))
        trim_summary(str(run.directory.summary), run.epoch)
        _print_start(run, options)
    begin = time.perf_counter()
    last = min(run.epochs, args.stop_epoch or run.epochs)
    while run.epoch < last:
        _train_epoch(run, autocast)
    if primary:
        _report(run, time.perf_counter() - begin)


def _train_epoch(run: Run, autocast: AbstractContextManager) -> None:
    """Trains, evaluates and saves one epoch, and prints its line."""
    args, epoch = run.args, run.epoch
    begin = time.perf_counter()
    seed_epoch(args.seed, epoch, args.rank)
    if hasattr(run.train_loader.sampler, "set_epoch"):
        run.train_loader.sampler.set_epoch(epoch)
    if hasattr(run.train_loader.dataset, "set_epoch"):
        run.train_loader.dataset.set_epoch(epoch)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        run.train_loader.mixup_enabled = False
    train = train_one_epoch(run.task, run.train_loader, run.optimisation, args, epoch, autocast)
    if args.distributed:
        distribute_bn(run.task.get_eval_model(), args.world_size, reduce=True)
    results = {ema: _evaluate(run, ema, autocast) for ema in ([False, True] if args.model_ema else [False])}
    chosen = results[args.model_ema]
    improved = chosen.top1 > run.best
    run.best = max(run.best, chosen.top1)
    run.epoch += 1
    lr = run.optimisation.lr
    _step_schedule(run)
    if args.rank == 0:
        metrics = {**results[False].metrics(), **(results[True].metrics("ema_") if args.model_ema else {})}
        # before the state: what a resumed run finds in the table beyond its state, it drops and makes again
        update_summary(epoch, train, metrics, str(run.directory.summary), lr=lr)
        _save(run, results, improved)
        plot_curves(run.directory)
        print(f"epoch {run.epoch:>{len(str(run.epochs))}}/{run.epochs}  train loss {train['loss']:.4f}  "
              f"val loss {chosen.loss:.4f}  top1 {chosen.top1:6.2f} %  top5 {chosen.top5:6.2f} %  lr {lr:.2e}  "
              f"{train['images_per_second']:.0f} img/s  {time.perf_counter() - begin:.1f} s"
              f"{'  best' if improved else ''}", flush=True)


def _evaluate(run: Run, ema: bool, autocast: AbstractContextManager) -> Evaluation:
    model = unwrap_model(run.task.get_eval_model(ema=ema))
    return evaluate(model, run.eval_loader, run.description.num_classes, torch.device(run.args.device), autocast,
                    run.args.channels_last, progress=run.args.rank == 0)


def _save(run: Run, results: dict[bool, Evaluation], improved: bool) -> None:
    """Writes the weights, the resume state and, if it is the best epoch, its confusion matrix."""
    directory = run.directory
    state: dict[str, Any] = {}
    for ema, result in results.items():
        weights = run.task.get_checkpoint_state(ema=ema)
        state.update(weights)
        run.description.epoch, run.description.metrics = run.epoch, result.metrics()
        tensors = weights["state_dict_ema" if ema else "state_dict"]
        save_weights(directory.last_ema if ema else directory.last, tensors, run.description)
        if improved:
            save_weights(directory.best_ema if ema else directory.best, tensors, run.description)
    chosen = results[run.args.model_ema]
    if improved and chosen.confusion is not None:
        write_confusion(directory.confusion_table, chosen.confusion, run.description.label_names)
    scaler = run.optimisation.scaler
    save_state(directory.state, {
        **state,
        "optimizer": run.optimisation.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "updates": run.optimisation.updates,
        "epoch": run.epoch,
        "best": run.best,
        "description": asdict(run.description),
    })


def _print_start(run: Run, options: dict[str, Any]) -> None:
    args, description = run.args, run.description
    parameters = sum(p.numel() for p in unwrap_model(run.task.get_trainable_module()).parameters())
    size = "x".join(map(str, description.data_config["input_size"]))
    if options["config"]:
        path = Path(options["config"]).absolute()
        inside = path.is_relative_to(Path.cwd())
        print(f"options    {path.relative_to(Path.cwd()) if inside else path}")
    print(f"data       {args.dataset or args.data_dir}: {len(run.train_loader.dataset)} training and "
          f"{len(run.eval_loader.dataset)} validation images, {description.num_classes} classes, input {size}")
    print(f"model      {description.architecture}, {parameters / 1e6:.2f} M parameters, on {args.device}"
          + (f" x {args.world_size} processes" if args.world_size > 1 else ""))
    print(f"run        {run.directory.path}" + (f", resumed after epoch {run.epoch}" if args.resume else ""),
          flush=True)


def _report(run: Run, seconds: float) -> None:
    """Draws the confusion matrix and says what the run made and what can be done with it."""
    args, directory = run.args, run.directory
    if run.epoch == 0:
        raise UserError("no epoch was trained: --epochs or --stop-epoch is 0")
    kind = "EMA weights, " if args.model_ema else ""
    if directory.confusion_table.exists():
        plot_confusion(directory, f"{run.description.architecture}, {args.dataset or Path(args.data_dir).name}: "
                                  f"{kind}top-1 {run.best:.2f} %")
    finished = run.epoch >= run.epochs
    best = directory.best_ema if args.model_ema else directory.best
    print(f"{'finished' if finished else 'stopped'} after epoch {run.epoch} of {run.epochs}, {seconds:.0f} s; "
          f"best validation top-1 {run.best:.2f} % ({kind}{best.name})")
    made = [file.name for file in directory.files if file.exists()]
    print(f"files in {directory.path}: {', '.join(made)}")
    for purpose, command in next_commands(directory, args, finished):
        print(f"{purpose + ':':10} {command}")
