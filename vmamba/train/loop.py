"""One epoch of training over a `timm.task.TrainingTask`, from any step of it on."""
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import Tensor

from ..data.order import seed_all
from ..errors import UserError, require
from .reports import format_seconds
from .sharding import no_sync, whole_tensor
from .stop import StoppedRun, StopRequest

__all__ = ["EpochTrainer", "Optimisation", "Progress", "create_autocast"]


@dataclass
class Optimisation:
    """What moves the weights.

    Attributes:
        optimizer: from timm's factory.
        scheduler: timm scheduler of the learning rate.
        scaler: loss scaler for float16, else None.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: NativeScaler | None = None

    @property
    def lr(self) -> float:
        """Largest learning rate of all parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)


@dataclass
class Progress:
    """How far a run is. A step is one step of the optimiser.

    Attributes:
        epoch: epochs finished.
        step: steps made in the current epoch.
        loss_sum: sum of the losses of its steps that were finite.
        losses: how many those are.
        skipped: steps of the whole run that were left out, because they were not finite.
        best: best score of an evaluation so far: of classifiers validation top-1, percent.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    skipped: int = 0
    best: float = -1.0

    @property
    def loss(self) -> float:
        """Mean training loss of the current epoch so far."""
        return self.loss_sum / self.losses if self.losses else math.nan

    def next_epoch(self) -> None:
        """Goes to the beginning of the next epoch."""
        self.epoch, self.step, self.loss_sum, self.losses = self.epoch + 1, 0, 0.0, 0


def create_autocast(args: Namespace, device: torch.device) -> AbstractContextManager:
    """Returns the context forward passes run in: mixed precision with `--amp`, else nothing."""
    return torch.autocast(device.type, dtype=getattr(torch, args.amp_dtype)) if args.amp else nullcontext()


def _peak_memory(device: str) -> float:
    """Returns the most memory this process has had so far, GiB: of the GPU, else of the machine (0 on Windows)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(torch.device(device)) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource  # Unix only

    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass
class EpochTrainer:
    """Trains one epoch, or what is left of it, with gradient accumulation, clipping, loss scaling and EMA.

    Attributes:
        task: model, loss and EMA.
        loader: timm's prefetching loader around a `vmamba.data.order.SeededLoader`.
        steps: steps of a whole epoch.
        optimisation: what moves the weights.
        args: options of the run.
        autocast: context of the forward passes.
        stop: whether the run is asked to stop.
        save: writes the state of the run.
        log: takes (epoch, step, loss, learning rate) each `--log-interval` steps.
    """

    task: TrainingTask
    loader: Any
    steps: int
    optimisation: Optimisation
    args: Namespace
    autocast: AbstractContextManager
    stop: StopRequest
    save: Callable[[], None]
    log: Callable[[int, int, float, float], None]
    _pending: list[Tensor] = field(default_factory=list)
    _begin: tuple[int, float] = (0, 0.0)

    def train(self, progress: Progress) -> float:
        """Makes the steps from `progress.step` on to the end of the epoch.

        All that is drawn at random follows from seed, epoch, step and process, so it does not matter where an epoch
        began.

        Returns:
            Images of all processes a second.

        Raises:
            UserError: a loss is not finite, or more of them than `--max-skipped-steps`.
            StoppedRun: somebody asked for it; the state is saved.
        """
        args = self.args
        self.task.train()
        # adaptive clipping leaves the classifier alone, as timm does
        parameters = list(self.task.get_clip_parameters(exclude_head=args.clip_mode == "agc"))
        images = args.batch_size * args.world_size * args.grad_accum_steps      # a step
        # bars only on terminals (None) and only from the first process; elsewhere the line at the epoch's end is enough
        bar = require("tqdm").tqdm(total=self.steps * images, initial=progress.step * images, unit="img",
                                   unit_scale=True, desc=f"epoch {progress.epoch + 1}/{args.epochs}", leave=False,
                                   disable=True if args.rank else None, file=sys.stderr)
        self.loader.loader.set_position(progress.epoch, progress.step * args.grad_accum_steps)
        batches, first, start = iter(self.loader), progress.step, time.perf_counter()
        self._begin = (first, start)
        self._pending.clear()
        with bar:
            while progress.step < self.steps and self._step(batches, parameters, progress):
                bar.update(images)
                progress.step += 1
                last = progress.step == self.steps
                if last or progress.step % args.log_interval == 0:
                    self._log(progress, bar)
                if not last:
                    self._save(progress)
        trained = progress.step - first
        self._flush(progress)
        progress.step = self.steps      # a reader that guessed its length may have ended before
        return trained * images / (time.perf_counter() - start)

    def _step(self, batches: Iterator[tuple[Tensor, Tensor]], parameters: list[Any], progress: Progress) -> bool:
        """Makes one step of the optimiser; returns False if there are no more batches."""
        accumulate = self.args.grad_accum_steps
        count = min(accumulate, len(self.loader) - progress.step * accumulate)
        total = torch.zeros((), device=self.args.device)
        self.optimisation.optimizer.zero_grad()
        for part in range(count):
            try:
                batch = next(batches, None)
            except Exception:       # of the data: what has been trained so far is good
                if not self.args.distributed:
                    self._flush(progress)
                    self.save()
                raise
            if batch is None:
                return False
            inputs, targets = batch
            if self.args.channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            seed_all(self.args.seed, progress.epoch, self.args.rank, progress.step * accumulate + part, 1)
            last = part + 1 == count
            with nullcontext() if last else no_sync(self.task):
                with self.autocast:
                    loss = self.task(inputs, targets)["loss"]
                stepped = self._backward(loss / count, parameters, last)
            total += loss.detach() / count
        self._pending.append(total)
        done = progress.epoch * self.steps + progress.step + 1
        if stepped:
            self.task.update_ema(step=done)
        else:
            self._skip(progress, progress.step + 1)
        self.optimisation.scheduler.step_update(done)
        return True

    def _backward(self, loss: Tensor, parameters: list[Any], update: bool) -> bool:
        """Adds the gradients of `loss`; on `update` clips them and steps. Returns False if that step was left out."""
        args, optimizer, scaler = self.args, self.optimisation.optimizer, self.optimisation.scaler
        if scaler is not None:      # it leaves out steps that are not finite by itself
            scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=parameters,
                   need_update=update)
            return True
        loss.backward()
        if not update:
            return True
        if args.max_skipped_steps:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            # the same in every process: the gradients have been averaged
            if not whole_tensor(torch.nn.utils.get_total_norm(gradients)).isfinite():
                return False
        if args.clip_grad is not None:
            dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
        optimizer.step()
        return True

    def _skip(self, progress: Progress, step: int) -> None:
        """Counts and reports a step that was left out, counted from 1."""
        progress.skipped += 1
        where = f"step {step} of {self.steps} in epoch {progress.epoch + 1}"
        if progress.skipped > self.args.max_skipped_steps:
            raise UserError(f"the gradients of {where} are not finite, and --max-skipped-steps "
                            f"{self.args.max_skipped_steps} are left out already; the last checkpoint is from before")
        if self.args.rank == 0:
            print(f"warning: {where} is left out: its gradients are not finite ({progress.skipped} of at most "
                  f"{self.args.max_skipped_steps})", file=sys.stderr, flush=True)

    def _flush(self, progress: Progress) -> float:
        """Adds the losses of the last steps to the sum; returns the latest, the mean over all processes."""
        if not self._pending:
            return math.nan
        values = torch.stack(self._pending)
        if self.args.distributed:
            torch.distributed.all_reduce(values)
            values /= self.args.world_size
        begin = progress.step - len(self._pending)
        losses = values.tolist()
        self._pending.clear()
        for number, loss in enumerate(losses, begin + 1):
            if math.isfinite(loss):
                progress.loss_sum += loss
                progress.losses += 1
            elif not self.args.max_skipped_steps:
                raise UserError(f"the training loss became {loss} at step {number} of {self.steps} in epoch "
                                f"{progress.epoch + 1}: a lower --lr or --clip-grad may help, --max-skipped-steps N "
                                "leaves such steps out; the last checkpoint is from before")
            elif self.optimisation.scaler is not None:      # which has left it out
                self._skip(progress, number)
        return losses[-1]

    def _log(self, progress: Progress, bar: Any) -> None:
        """Reports the step that has just been made."""
        loss, lr = self._flush(progress), self.optimisation.lr
        if self.args.rank == 0:
            self.log(progress.epoch, progress.step, loss, lr)
        if not bar.disable:
            first, begin = self._begin
            left = (self.args.epochs - progress.epoch) * self.steps - progress.step
            left_seconds = left * (time.perf_counter() - begin) / (progress.step - first)
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", GiB=f"{_peak_memory(self.args.device):.1f}",
                            run=format_seconds(left_seconds))

    def _save(self, progress: Progress) -> None:
        """Saves between two steps, if it is time to or the run has to stop."""
        args = self.args
        # processes agree when they meet anyway
        ask = not args.distributed or progress.step % args.log_interval == 0
        stopping = ask and self.stop.agreed(args.distributed, torch.device(args.device))
        due = args.recovery_interval and progress.step % args.recovery_interval == 0
        if stopping or due:
            self._flush(progress)
            self.save()
        if stopping:
            raise StoppedRun
