"""The command behind tools/train_change.py: trains one of ChangeMamba's systems on folders of pairs."""
import argparse
from collections.abc import Sequence
from typing import Any

import torch
from timm.utils import ParseKwargs
from torch import nn
from torch.utils.data import DataLoader

from vmamba.data.change_augmentation import ChangeTransform
from vmamba.data.change_pairs import LAYOUTS, ChangePairs
from vmamba.errors import UserError, tool
from vmamba.tasks.loop import Training, add_run_arguments, read_options, run_folder, run_training
from vmamba.train.arguments import Parser

from .losses import change_losses
from .metrics import MAIN_METRIC, ChangeMetrics, class_maps, create_metrics
from .models import create_change_model

__all__ = ["build_described", "evaluate_pairs", "main"]


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s --data-dir DIR [options]",
                    description="Train change detection on folders of pairs; the layout says which task.")
    add = parser.add_argument
    add("--layout", choices=list(LAYOUTS), default="levir", help="how it lies in its folders")
    add("--crop", type=int, default=256, metavar="N", help="side of the training crops, pixels; 0 for whole images")
    add("--encoder", default="tiny", metavar="NAME",
        help="tiny, small, base (the published ones), or a timm model with maps at strides 4 to 32")
    add("--encoder-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="more encoder arguments")
    add("--dim", type=int, default=128, metavar="N", help="channels of the decoders")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=False,
        help="start from the encoder's published weights")
    add_run_arguments(parser)
    return parser


def build_described(description: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """Builds the model that a description names.

    Raises:
        UserError: there is no such model.
    """
    try:
        return create_change_model(
            description["task"], description["encoder"], dim=description["dim"], pretrained=pretrained,
            **description["encoder_args"])
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"cannot build a model with the encoder {description['encoder']}: {error}") from error


@torch.inference_mode()
def evaluate_pairs(
    model: nn.Module, dataset: ChangePairs, device: torch.device, amp: bool, metrics: ChangeMetrics, workers: int = 0,
) -> dict[str, float]:
    """Metrics of `model` on whole images, one pair at a time, for they may differ in size."""
    metrics.reset()
    for first, second, labels in DataLoader(dataset, batch_size=1, num_workers=workers):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(first.to(device), second.to(device))
        metrics.update(class_maps(logits), {name: label.to(device) for name, label in labels.items()})
    return metrics.compute()


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Trains as the command line says and returns an exit code."""
    args, device = read_options(_parser(), argv)
    task = LAYOUTS[args.layout].task
    train = ChangePairs(
        args.data_dir, args.train_split, args.layout, ChangeTransform(args.crop or None, augment=True))
    validation = ChangePairs(args.data_dir, args.val_split, args.layout, ChangeTransform(None, augment=False))
    description = {"task": task, "encoder": args.encoder, "encoder_args": args.encoder_kwargs, "dim": args.dim}
    torch.manual_seed(args.seed)
    model = build_described(description, args.pretrained).to(device)
    metrics = create_metrics(task).to(device)

    def loss(batch: Any) -> torch.Tensor:
        before, after, labels = batch
        logits = model(before.to(device), after.to(device))
        return change_losses(
            task, {k: v.float() for k, v in logits.items()}, {k: v.to(device) for k, v in labels.items()})["loss"]

    folder = run_folder(args, f"{task}-{args.encoder}")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(train)} training and {len(validation)} validation pairs; {type(model).__name__} over {args.encoder}, "
          f"{parameters / 1e6:.2f} M parameters, on {device}; run {folder}", flush=True)
    best = run_training(Training(
        model, loss, lambda: evaluate_pairs(model, validation, device, args.amp, metrics, args.workers),
        MAIN_METRIC[task], train, description, args, folder))
    print(f"best validation {MAIN_METRIC[task]} {best:.4f}; weights in {folder / 'model_best.safetensors'}")
    return 0
