"""timm's loaders, filled from parsed arguments and a data configuration."""
from argparse import Namespace
from typing import Any

import torch
from timm.data import FastCollateMixup, create_loader
from torch.utils.data import DataLoader, IterableDataset

from ..errors import UserError
from .augmentation import transform_from_arguments
from .order import EpochBatches, SeededDataset, SeededLoader, hold_signals

__all__ = ["create_eval_loader", "create_mixup", "create_train_loader"]


def create_mixup(args: Namespace, num_classes: int) -> FastCollateMixup | None:
    """Returns the Mixup/CutMix collate function, or None if neither is asked for."""
    if not (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax):
        return None
    if args.batch_size % 2:
        raise UserError(f"--mixup and --cutmix pair images: --batch-size must be even, not {args.batch_size}")
    return FastCollateMixup(
        mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def create_train_loader(
    dataset: Any,
    args: Namespace,
    data_config: dict[str, Any],
    device: torch.device,
    collate_fn: FastCollateMixup | None = None,
) -> Any:
    """Returns the loader of the training split: shuffled, augmented, whole batches only.

    Its `loader` is a `SeededLoader`, which can begin at any batch of any epoch.

    Raises:
        UserError: the split is smaller than one batch, or `--aug-config` does not fit.
    """
    transform = transform_from_arguments(args, data_config["input_size"])
    if not isinstance(dataset, IterableDataset) and len(dataset) < args.batch_size * args.world_size:
        raise UserError(f"the training split has {len(dataset)} images, fewer than one batch of "
                        f"{args.batch_size * args.world_size}: give a smaller --batch-size")
    loader = create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=args.batch_size,
        is_training=True,
        no_aug=args.no_aug,
        re_prob=args.reprob,
        re_mode=args.remode,
        re_count=args.recount,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        interpolation=args.train_interpolation or data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        collate_fn=collate_fn,
        pin_memory=device.type == "cuda",
        device=device,
        persistent_workers=False,
    )
    if transform is not None:
        dataset.transform = transform       # in the place of the one timm has just put there
    loader.loader = SeededLoader(_ordered(loader.loader, args), args.seed, args.rank)
    return loader


def _ordered(loader: DataLoader, args: Namespace) -> DataLoader:
    """Returns timm's loader with our order of the images; readers that cannot seek keep their own."""
    if isinstance(loader.dataset, IterableDataset):
        if args.aug_repeats > 1:
            raise UserError("--aug-repeats needs a dataset whose images can be read in any order")
        loader.worker_init_fn = hold_signals
        return loader
    dataset = SeededDataset(loader.dataset, args.max_unreadable)
    batches = EpochBatches(len(dataset), args.batch_size, seed=args.seed, rank=args.rank, world_size=args.world_size,
                           repeats=max(1, args.aug_repeats))
    # processes are started anew each epoch: the seeds come with the indices, so nothing else tells epochs apart
    return DataLoader(dataset, batch_sampler=batches, collate_fn=loader.collate_fn, num_workers=args.workers,
                      pin_memory=loader.pin_memory, worker_init_fn=hold_signals)


def create_eval_loader(
    dataset: Any,
    data_config: dict[str, Any],
    device: torch.device,
    *,
    batch_size: int,
    workers: int = 0,
    distributed: bool = False,
) -> Any:
    """Returns the loader of a validation split: in order, resized and cropped as `data_config` says.

    Under `torchrun` each process gets its share; `timm.task.evaluation_sample_limit` tells how much of it is not
    padding.
    """
    return create_loader(
        dataset,
        input_size=data_config["input_size"],
        batch_size=batch_size,
        is_training=False,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        num_workers=workers,
        distributed=distributed,
        pin_memory=device.type == "cuda",
        device=device,
        persistent_workers=False,
    )
