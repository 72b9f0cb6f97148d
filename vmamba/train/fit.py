"""The command behind tools/train.py: trains what the options ask for, saves each epoch, and reports."""
import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from timm.utils import distribute_bn, init_distributed_device, unwrap_model
from torch.multiprocessing import reductions
from torch.utils.data import IterableDataset

from ..errors import UserError, tool
from .arguments import parse_train_arguments
from .build import Run, build_run
from .config import dump_config
from .evaluation import Evaluation, evaluate
from .logs import RunLog, require_trackers, write_environment
from .loop import EpochTrainer, create_autocast
from .reports import (
    format_seconds,
    next_commands,
    plot_confusion,
    plot_curves,
    plot_mistakes,
    read_mistakes,
    write_classes,
    write_confusion,
    write_mistakes,
)
from .run_directory import RunDirectory, atomic_path, check_writable
from .state import restore_run, run_weights, save_run, save_run_weights, step_schedule
from .stop import EXIT_STOPPED, StoppedRun, StopRequest
from .tasks import SelfDistillationTask

__all__ = ["Kind", "main", "train"]

MISTAKES = 24   # of the best epoch, on one sheet


@dataclass(frozen=True)
class Kind:
    """What one kind of training does in its own way.

    Attributes:
        directory: class of its run directories.
        build: makes a run of options, directory and device.
        evaluate: evaluates the trained, or with True the averaged, weights of a run. Called with the run, that, the
            trainer, and a function to call between batches; gives something with `score`, more is better, `metrics()`
            and a line of text.
        write_epoch: writes files about an epoch: of the run, the result that counts, and whether it is the best so far.
        report: says what a run made; called with the run and the seconds it took.
    """

    directory: type[RunDirectory]
    build: Callable[[argparse.Namespace, Any, torch.device], Run]
    evaluate: Callable[[Run, bool, EpochTrainer, Callable[[], None]], Any]
    write_epoch: Callable[[Run, Any, bool], None]
    report: Callable[[Run, float], None]


@tool
def main(argv: Sequence[str] | None = None, recipes: Path | None = None) -> int:
    """Trains as the command line says.

    Args:
        argv: command line without the program name; None is `sys.argv`.
        recipes: folder of the bundled datasets' recipes.

    Returns:
        Exit code: 0, 2 after one line on stderr that says what was wrong, or `EXIT_STOPPED` if a signal asked the run
        to stop and its state is saved.
    """
    argv = sys.argv[1:] if argv is None else argv
    kind = Kind(RunDirectory, build_run, _evaluate_classifier, _write_epoch, _report)
    return train(parse_train_arguments(argv, recipes), argv, kind)


def train(args: argparse.Namespace, argv: Sequence[str], kind: Kind) -> int:
    """Makes, or continues, a run.

    Args:
        args: its options.
        argv: the command line they come from.
        kind: what is trained.

    Returns:
        Exit code, as of `main`.

    Raises:
        UserError: anything that is the user's to put right.
    """
    options = dict(vars(args))
    if args.print_config:
        print(dump_config(options), end="")
        return 0
    require_trackers(args)
    directory = _run_directory(args, kind.directory)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = _init_device(args)
    stop = StopRequest()
    try:
        run = kind.build(args, directory, device)
        with stop.listening(), _loader_errors(directory, args):
            _train(run, options, argv, stop, kind)
    except StoppedRun:
        if args.rank == 0:
            print(f"stopped at step {run.progress.step} of {run.steps} in epoch {run.progress.epoch + 1} of "
                  f"{run.epochs}; continue with: {next_commands(directory, args, False)[-1][1]}", file=sys.stderr)
        code = EXIT_STOPPED
    else:
        code = 0
    if args.distributed:
        # the others wait for rank 0's last files. After an error nobody waits: a process that ends takes them with it
        torch.distributed.barrier()
        # without destructors: that of the process group holds the interpreter's lock while it waits for a thread which
        # may be waiting for that lock
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _loader_errors(directory: RunDirectory, args: argparse.Namespace) -> Iterator[None]:
    """Says in one line that a loader process died, and how to go on."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        if "DataLoader worker" in str(error):
            what = str(error).splitlines()[0]
        elif any(frame.f_globals["__name__"] == reductions.__name__ for frame, _ in walk_tb(error.__traceback__)):
            # it died after it had said that a batch is ready, and before the batch was fetched from it
            what = f"DataLoader worker exited unexpectedly ({type(error).__name__})."
        else:
            raise
        raise UserError(f"{what} Loaders die for want of memory or shared memory: fewer --workers may help; continue "
                        f"with: {next_commands(directory, args, False)[-1][1]}") from error


def _run_directory(args: argparse.Namespace, kind: type[RunDirectory]) -> RunDirectory:
    """Chooses the run directory and refuses one that holds another run."""
    if args.resume:
        directory = kind(args.resume).existing()
        check_writable(directory.path)
        return directory
    name = args.experiment or f"{time.strftime('%Y%m%d-%H%M%S')}-{(args.model or 'model').replace('/', '_')}"
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--experiment is a folder name inside --output, not a path: {name!r}")
    directory = kind(Path(args.output) / name)
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


def _train(run: Run, options: dict[str, Any], argv: Sequence[str], stop: StopRequest, kind: Kind) -> None:
    """Trains to the end, saving after each epoch, then reports."""
    args, primary = run.args, run.args.rank == 0
    restored = bool(args.resume) and restore_run(run)
    progress = run.progress
    log: RunLog | None = None
    if primary:
        if not args.resume:
            run.directory.create()
        write_environment(run.directory, argv, args.device, args.world_size)
        with atomic_path(run.directory.arguments) as temporary:
            temporary.write_text(dump_config(options))
        log = RunLog(run.directory, progress, options, run.steps)
        _print_start(run, options, restored)
    begin = time.perf_counter()
    autocast = create_autocast(args, torch.device(args.device))
    trainer = EpochTrainer(run.task, run.train_loader, run.steps, run.optimisation, args, autocast, stop,
                           save=lambda: save_run(run), log=log.step if log else lambda *step: None)
    failed = True
    try:
        while progress.epoch < min(run.epochs, args.stop_epoch or run.epochs):
            _train_epoch(run, trainer, log, kind)
        failed = False
    finally:
        if log:
            log.close(failed)
    if primary:
        kind.report(run, time.perf_counter() - begin)


def _train_epoch(run: Run, trainer: EpochTrainer, log: RunLog | None, kind: Kind) -> None:
    """Trains, evaluates and saves one epoch, and prints its line."""
    args, progress, epoch = run.args, run.progress, run.progress.epoch
    begin, speed = time.perf_counter(), 0.0
    if progress.step < run.steps:
        if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
            run.train_loader.mixup_enabled = False
        if isinstance(run.task, SelfDistillationTask):
            run.task.active = epoch >= args.mesa_start * args.epochs
        speed = trainer.train(progress)
        if args.distributed:
            distribute_bn(run.task.get_eval_model(), args.world_size, reduce=True)
            if args.model_ema:      # from the first process, which also saves it
                distribute_bn(run.task.get_eval_model(ema=True), args.world_size, reduce=False)
    results = {ema: _evaluate(run, ema, trainer, kind) for ema in ([False, True] if args.model_ema else [False])}
    chosen, lr, loss = results[args.model_ema], run.optimisation.lr, progress.loss
    weights = {ema: run_weights(run, ema) for ema in results}
    improved = chosen.score > progress.best
    progress.best = max(progress.best, chosen.score)
    progress.next_epoch()
    step_schedule(run)
    seconds = time.perf_counter() - begin
    if log is not None:
        metrics = {**results[False].metrics("eval_"), **(results[True].metrics("eval_ema_") if args.model_ema else {})}
        # before the state: what a resumed run finds in the table beyond its state, it drops and makes again
        log.epoch({"epoch": epoch, "train_loss": loss, "train_images_per_second": speed, **metrics, "lr": lr})
        save_run_weights(run, results, weights, improved)
        kind.write_epoch(run, chosen, improved)
        plot_curves(run.directory)
        print(f"epoch {progress.epoch:>{len(str(run.epochs))}}/{run.epochs}  train loss {loss:.4f}  {chosen}  "
              f"lr {lr:.2e}  {speed:.0f} img/s  {seconds:.1f} s  "
              f"left {format_seconds(seconds * (run.epochs - progress.epoch))}"
              f"{'  best' if improved else ''}", flush=True)
    save_run(run)
    if progress.epoch < run.epochs and trainer.stop.agreed(args.distributed, torch.device(args.device)):
        raise StoppedRun


def _evaluate(run: Run, ema: bool, trainer: EpochTrainer, kind: Kind) -> Any:
    """Evaluates the trained or the averaged weights; a single process that has to stop does so in between."""
    def between() -> None:
        if trainer.stop.asked and not run.args.distributed:
            save_run(run)
            raise StoppedRun

    return kind.evaluate(run, ema, trainer, between)


def _evaluate_classifier(run: Run, ema: bool, trainer: EpochTrainer, between: Callable[[], None]) -> Evaluation:
    model = unwrap_model(run.task.get_eval_model(ema=ema))
    return evaluate(model, run.eval_loader, run.description.num_classes, torch.device(run.args.device),
                    trainer.autocast, run.args.channels_last, progress=run.args.rank == 0, between=between,
                    mistakes=MISTAKES)


def _write_epoch(run: Run, result: Evaluation, improved: bool) -> None:
    """Writes the tables of the best epoch so far."""
    if not improved:
        return
    directory, names = run.directory, run.description.label_names
    if result.confusion is not None:
        write_confusion(directory.confusion_table, result.confusion, names)
        write_classes(directory.classes, result.confusion, names)
    if not isinstance(run.eval_loader.dataset, IterableDataset):
        write_mistakes(directory.mistakes_table, result.mistakes, run.eval_loader.dataset, names)


def _print_start(run: Run, options: dict[str, Any], restored: bool) -> None:
    args, description = run.args, run.description
    parameters = sum(p.numel() for p in unwrap_model(run.task.get_trainable_module()).parameters())
    size = "x".join(map(str, description.data_config["input_size"]))
    if options["config"]:
        path = Path(options["config"]).absolute()
        inside = path.is_relative_to(Path.cwd())
        print(f"options    {path.relative_to(Path.cwd()) if inside else path}")
    print(f"data       {args.dataset or args.data_dir}: {len(run.train_loader.dataset)} training and "
          f"{len(run.eval_loader.dataset)} validation images, "
          f"{f'{description.num_classes} classes, ' if description.num_classes else ''}input {size}")
    print(f"model      {description.architecture}, {parameters / 1e6:.2f} M parameters, on {args.device}"
          + (f" x {args.world_size} processes" if args.world_size > 1 else ""))
    step = f", step {run.progress.step} of {run.steps}" if run.progress.step else ""
    resumed = f", resumed after epoch {run.progress.epoch}{step}" if restored else ", no state saved yet: begins anew"
    print(f"run        {run.directory.path}{resumed if args.resume else ''}", flush=True)


def _report(run: Run, seconds: float) -> None:
    """Draws confusion matrix and mistakes, and says what the run made and what can be done with it."""
    args, directory = run.args, run.directory
    if run.progress.epoch == 0:
        raise UserError("no epoch was trained: --epochs or --stop-epoch is 0")
    kind = "EMA weights, " if args.model_ema else ""
    if directory.confusion_table.exists():
        plot_confusion(directory, f"{run.description.architecture}, {args.dataset or Path(args.data_dir).name}: "
                                  f"{kind}top-1 {run.progress.best:.2f} %")
    if directory.mistakes_table.exists():
        plot_mistakes(directory.mistakes, read_mistakes(directory.mistakes_table), run.eval_loader.dataset,
                      run.description.label_names)
    finished = run.progress.epoch >= run.epochs
    best = directory.best_ema if args.model_ema else directory.best
    print(f"{'finished' if finished else 'stopped'} after epoch {run.progress.epoch} of {run.epochs}, {seconds:.0f} s; "
          f"best validation top-1 {run.progress.best:.2f} % ({kind}{best.name})")
    made = [file.name for file in directory.files if file.exists()]
    print(f"files in {directory.path}: {', '.join(made)}")
    for purpose, command in next_commands(directory, args, finished):
        print(f"{purpose + ':':10} {command}")
