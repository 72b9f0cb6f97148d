"""Builds what a training run consists of from its options. Nothing here writes a file."""
import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import FastCollateMixup
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import TrainingTask
from timm.utils import NativeScaler, unwrap_model
from torch.utils.data import IterableDataset

from ..data import class_names, create_dataset, create_eval_loader, create_train_loader, dataset_errors, share_out
from ..data.loaders import create_mixup
from ..data.order import seed_all
from ..errors import UserError, near_names
from .checkpoint import Description, load_weights
from .loop import Optimisation, Progress
from .model import build_classifier, data_config_for, model_arguments
from .run_directory import RunDirectory, check_writable
from .tasks import create_task, freeze_stages

__all__ = ["Run", "assemble_run", "build_run", "create_model", "dataset_options"]


@dataclass
class Run:
    """Everything a training run consists of.

    Attributes:
        args: the resolved options; `world_size`, `rank`, `device` and `distributed` included.
        directory: where the run leaves its files.
        task: model, loss and EMA.
        optimisation: optimiser, schedule, loss scaler.
        train_loader, eval_loader: the two splits.
        description: what the checkpoints say about the model.
        epochs: epochs of the whole schedule, warm-up prefix and cool-down included.
        steps: steps of the optimiser in an epoch.
        progress: how far the run is.
    """

    args: argparse.Namespace
    directory: RunDirectory
    task: TrainingTask
    optimisation: Optimisation
    train_loader: Any
    eval_loader: Any
    description: Description
    epochs: int
    steps: int
    progress: Progress = field(default_factory=Progress)


def build_run(args: argparse.Namespace, directory: RunDirectory, device: torch.device) -> Run:
    """Builds datasets, model, loaders and optimisation.

    Args:
        args: options of `train_parser`, with `world_size`, `rank`, `device` and `distributed` set.
        directory: where the run will leave its files.
        device: where the model goes.

    Raises:
        UserError: any option, dataset or weight file that does not fit.
    """
    if not args.model:
        raise UserError("no model: give --model NAME")
    seed_all(args.seed)
    train_set, eval_set, names = _create_datasets(args)
    num_classes = args.num_classes or (len(names) if names else None)
    if names and num_classes and num_classes < len(names):
        raise UserError(f"--num-classes {num_classes} is too small: the data has {len(names)} classes")
    channels = args.input_size[0] if args.input_size else args.in_chans
    model = create_model(args, num_classes, channels)
    data_config = data_config_for(model, args)
    num_classes = model.num_classes
    names = [*(names or []), *map(str, range(len(names or []), num_classes))]
    kept = {key: value for key, value in model_arguments(args).items() if key not in ("drop_rate", "drop_path_rate")}
    description = Description(args.model, num_classes, data_config["input_size"][0], kept, names, data_config,
                              args.dataset)

    mixup = create_mixup(args, num_classes)
    return assemble_run(
        args, directory, device, description, (train_set, eval_set),
        lambda: create_task(args, model, device, data_config, soft_targets=mixup is not None), mixup)


def assemble_run(
    args: argparse.Namespace, directory: RunDirectory, device: torch.device, description: Description,
    datasets: tuple[Any, Any], create: Callable[[], TrainingTask], mixup: FastCollateMixup | None = None,
) -> Run:
    """Builds loaders and optimisation around a task.

    Args:
        args: options of the run.
        directory: where the run will leave its files.
        device: where the model goes.
        description: what the checkpoints will say; its `data_config` is that of the loaders.
        datasets: the training and the validation split.
        create: makes the task, once the data is known to be good.
        mixup: collate function of the training loader.

    Raises:
        UserError: the options do not fit the data, or the optimiser.
    """
    if args.fsdp and not args.distributed:
        raise UserError("--fsdp splits a model over several processes: start the tool with torchrun")
    data_config = description.data_config
    train_set, eval_set = datasets
    with dataset_errors("cannot build the training loader"):
        train_loader = create_train_loader(train_set, args, data_config, device, mixup)
    eval_loader = create_eval_loader(
        eval_set, data_config, device, batch_size=args.validation_batch_size or args.batch_size,
        workers=args.workers, distributed=args.distributed)
    task = create()
    steps = -(-len(train_loader) // args.grad_accum_steps)
    optimisation, epochs = _create_optimisation(args, unwrap_model(task.get_trainable_module()), steps)
    if args.distributed and not args.fsdp:
        task.prepare_distributed(device_ids=[device] if device.type == "cuda" else None)
    return Run(args, directory, task, optimisation, train_loader, eval_loader, description, epochs, steps)


def create_model(args: argparse.Namespace, num_classes: int | None, channels: int | None) -> Any:
    """Builds the model with the weights it starts from, and freezes what is not to be trained.

    Args:
        args: options of the run.
        num_classes: classes of the head; None is the weights' or the model's own.
        channels: channels of the images; None is the model's own.

    Raises:
        UserError: options that contradict each other, or weights that do not fit.
    """
    if args.initial_checkpoint and args.pretrained:
        raise UserError("--pretrained and --initial-checkpoint are two sources of weights: give one of them")
    if args.linear_probe and args.frozen_stages is not None:
        raise UserError("--linear-probe freezes all stages already: leave --frozen-stages out")
    weights, known = load_weights(args.initial_checkpoint) if args.initial_checkpoint else (None, None)
    classes = num_classes
    # an encoder that was trained without labels has no head to keep
    reset_head = args.reset_head or (known is not None and known.num_classes == 0)
    # it fits completely as what it was, then gets another head
    if weights is not None and (reset_head or num_classes is None):
        classes = known.num_classes if known else None
    model = build_classifier(
        args.model, num_classes=classes, in_chans=channels, pretrained=args.pretrained, weights=weights,
        weights_from=args.initial_checkpoint or "", **model_arguments(args))
    if reset_head:
        model.reset_classifier(num_classes or model.num_classes)
    if args.linear_probe or args.frozen_stages is not None:
        freeze_stages(model, None if args.linear_probe else args.frozen_stages)
    return model


def dataset_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `create_dataset` that are the same for both splits.

    Raises:
        UserError: the folder of the cache cannot be written to.
    """
    if args.data_cache:
        check_writable(Path(args.data_cache))
    channels = args.input_size[0] if args.input_size else (args.in_chans or 3)
    return {"input_img_mode": args.input_img_mode or ("L" if channels == 1 else "RGB"),
            "download": args.dataset_download, "batch_size": args.batch_size, "seed": args.seed,
            "input_key": args.input_key, "target_key": args.target_key, "cache": args.data_cache}


def _create_datasets(args: argparse.Namespace) -> tuple[Any, Any, list[str] | None]:
    """Opens both splits, the validation split with the training split's classes."""
    shared = dataset_options(args)
    train_set = create_dataset(args.dataset, args.data_dir, args.train_split, is_training=True,
                               class_map=args.class_map or None, **shared)
    names = class_names(train_set)
    class_map: Any = args.class_map or None
    if not args.dataset and not class_map and names:
        class_map = {name: index for index, name in enumerate(names)}
    eval_set = create_dataset(args.dataset, args.data_dir, args.val_split, class_map=class_map, **shared)
    if args.distributed and isinstance(eval_set, IterableDataset):
        if args.fsdp:
            raise UserError("--fsdp needs a validation split whose images can be read in any order")
        share_out(eval_set, args.rank, args.world_size)
    train_root, eval_root = (Path(getattr(getattr(dataset, "reader", None), "root", None) or ".")
                             for dataset in (train_set, eval_set))
    # timm takes the whole folder for a split it does not find, training images included
    if not args.dataset and (train_root.is_relative_to(eval_root) or eval_root.is_relative_to(train_root)):
        raise UserError(f"{args.data_dir} has no folders for both splits: it needs {args.train_split}/ and "
                        f"{args.val_split}/ (or val/), each with one folder a class")
    return train_set, eval_set, names


def _create_optimisation(args: argparse.Namespace, model: Any, steps: int) -> tuple[Optimisation, int]:
    """Creates optimiser, schedule and loss scaler; returns them and the epochs of the whole schedule."""
    if args.lr is None:
        ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
        args.lr = args.lr_base * (ratio if args.lr_base_scale == "linear" else ratio**0.5)
    try:
        optimizer = create_optimizer_v2(model, **{**optimizer_kwargs(args), **args.opt_kwargs})
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        known = [str(name) for name in list_optimizers()]
        near = near_names(args.opt, known) if args.opt not in known else ""
        raise UserError(f"cannot create optimiser {args.opt}: {error}{near}") from error
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=steps)
    needs_scaler = args.amp and args.amp_dtype == "float16"
    scaler = NativeScaler(device=torch.device(args.device).type) if needs_scaler else None
    scheduler.step_update(0)
    return Optimisation(optimizer, scheduler, scaler), int(epochs)
