"""One epoch of training over a `timm.task.TrainingTask`."""
import math
import sys
import time
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.task import TrainingTask
from timm.utils import NativeScaler, dispatch_clip_grad, random_seed

from ..errors import UserError, require

__all__ = ["Optimisation", "create_autocast", "seed_epoch", "train_one_epoch"]


@dataclass
class Optimisation:
    """What moves the weights.

    Attributes:
        optimizer: from timm's factory.
        scheduler: timm scheduler of the learning rate.
        scaler: loss scaler for float16, else None.
        updates: optimiser steps made so far.
    """

    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: NativeScaler | None = None
    updates: int = 0

    @property
    def lr(self) -> float:
        """Largest learning rate of all parameter groups."""
        return max(group["lr"] for group in self.optimizer.param_groups)


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seeds Python, NumPy and PyTorch for one epoch and process; -1 is the time before the first epoch.

    All randomness of an epoch follows from these three numbers, so a run that was resumed draws the same as one
    that was not.
    """
    random_seed(int(np.random.SeedSequence([seed, epoch + 1, rank]).generate_state(1)[0]))


def create_autocast(args: Namespace, device: torch.device) -> AbstractContextManager:
    """Returns the context forward passes run in: mixed precision with `--amp`, else nothing."""
    return torch.autocast(device.type, dtype=getattr(torch, args.amp_dtype)) if args.amp else nullcontext()


def train_one_epoch(
    task: TrainingTask,
    loader: Any,
    optimisation: Optimisation,
    args: Namespace,
    epoch: int,
    autocast: AbstractContextManager,
) -> dict[str, float]:
    """Trains for one epoch with gradient accumulation, clipping, loss scaling and EMA as `args` say.

    Returns:
        loss: mean training loss; images_per_second: images of all processes.

    Raises:
        UserError: the loss is not finite.
    """
    task.train()
    # adaptive clipping leaves the classifier alone, as timm does
    parameters = list(task.get_clip_parameters(exclude_head=args.clip_mode == "agc"))
    loss_sum = torch.zeros((), device=args.device)
    steps, images, start = len(loader), 0, time.perf_counter()
    # bars only on terminals (None) and only from the first process; elsewhere the line at the epoch's end is enough
    bar = require("tqdm").tqdm(loader, desc=f"epoch {epoch + 1}/{args.epochs}", unit="batch", leave=False,
                               disable=True if args.rank else None, file=sys.stderr)
    optimisation.optimizer.zero_grad()
    for step, (inputs, targets) in enumerate(bar):
        group = step // args.grad_accum_steps * args.grad_accum_steps
        accumulated = min(args.grad_accum_steps, steps - group)
        update = step + 1 == group + accumulated
        if args.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with nullcontext() if update else task.no_sync():
            with autocast:
                loss = task(inputs, targets)["loss"]
            _backward(loss / accumulated, optimisation, parameters, args, update)
        loss_sum += loss.detach()
        images += len(inputs) * args.world_size
        if update:
            optimisation.optimizer.zero_grad()
            optimisation.updates += 1
            task.update_ema(step=optimisation.updates)
            optimisation.scheduler.step_update(optimisation.updates)
        if step % args.log_interval == 0 and not bar.disable:
            bar.set_postfix(loss=f"{loss.item():.3f}", lr=f"{optimisation.lr:.1e}")
    mean = loss_sum.item() / steps
    if not math.isfinite(mean):
        raise UserError(f"the training loss became {mean} in epoch {epoch + 1}: a lower --lr or --clip-grad may help; "
                        "the last checkpoint is from before")
    return {"loss": mean, "images_per_second": images / (time.perf_counter() - start)}


def _backward(
    loss: torch.Tensor,
    optimisation: Optimisation,
    parameters: list[torch.nn.Parameter],
    args: Namespace,
    update: bool,
) -> None:
    """Adds the gradients of `loss`; on `update` clips them and steps."""
    if optimisation.scaler is not None:
        optimisation.scaler(loss, optimisation.optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode,
                            parameters=parameters, need_update=update)
        return
    loss.backward()
    if update:
        if args.clip_grad is not None:
            dispatch_clip_grad(parameters, value=args.clip_grad, mode=args.clip_mode)
        optimisation.optimizer.step()
