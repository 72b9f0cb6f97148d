"""The command behind tools/train_video.py: trains and evaluates a classifier of clips on folders of video files."""
import argparse
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.utils import ParseKwargs
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import vmamba.models  # noqa: F401  (registers the models)
from vmamba.data.videos import VideoClips
from vmamba.errors import UserError, near_names, require, tool
from vmamba.train.arguments import Parser

from .loop import Training, add_run_arguments, load_model_file, read_options, run_folder, run_training

__all__ = ["evaluate_clips", "main"]


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s --data-dir DIR [options]",
                    description="Train a classifier of clips on DIR/SPLIT/CLASS/*.mp4, or evaluate one.")
    add = parser.add_argument
    add("--model", default="videomamba_tiny", metavar="NAME", help="a timm model that takes clips: videomamba_*")
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="K=V", help="more model arguments")
    add("--pretrained", action=argparse.BooleanOptionalAction, default=False, help="start from the published weights")
    add("--frames", type=int, default=8, metavar="N", help="frames of a clip")
    add("--size", type=int, default=224, metavar="N", help="side of the frames, pixels")
    add("--hflip", type=float, default=0.5, metavar="P", help="probability of a mirrored clip")
    add("--smoothing", type=float, default=0.1, metavar="X", help="label smoothing")
    add("--clips", type=int, default=1, metavar="N", help="clips of a video in evaluation, averaged")
    add("--crops", type=int, choices=(1, 3), default=1, help="crops of each of these clips")
    add("--max-unreadable", type=int, default=0, metavar="N", help="videos an epoch that may turn out damaged")
    add("--evaluate", metavar="FILE", help="evaluate these weights on the validation videos instead of training")
    add_run_arguments(parser)
    return parser


def _build(description: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """Builds the model that a description names.

    Raises:
        UserError: there is no such model, or it takes no clips.
    """
    name = description["model"]
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"unknown model {name!r}{near_names(name, timm.list_models('*video*'))}")
    try:
        return timm.create_model(
            name, pretrained=pretrained, num_classes=len(description["classes"]), num_frames=description["frames"],
            img_size=description["size"], **description["model_args"])
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"cannot build {name} for clips: {error}") from error


@torch.inference_mode()
def evaluate_clips(
        model: nn.Module, dataset: VideoClips, device: torch.device, amp: bool, workers: int = 0) -> dict[str, float]:
    """Top-1 and top-5 accuracy, parts of 1, of the probabilities averaged over all views of each video."""
    metrics = require("torchmetrics")
    classes = len(dataset.classes)
    scores = {
        name: metrics.Accuracy("multiclass", num_classes=classes, average="micro", top_k=min(k, classes)).to(device)
        for name, k in (("top1", 1), ("top5", 5))}
    model.eval()
    for views, label in DataLoader(dataset, batch_size=1, num_workers=workers):
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(views[0].to(device))
        mean = logits.float().softmax(1).mean(0, keepdim=True)
        for score in scores.values():
            score.update(mean, label.to(device))
    return {name: float(score.compute()) for name, score in scores.items()}


def _evaluate_file(args: Any, validation: VideoClips, device: torch.device) -> int:
    """Evaluates the weights that `--evaluate` names."""
    state, description = load_model_file(args.evaluate)
    if description["classes"] != validation.classes:
        raise UserError(f"{args.evaluate} knows the classes {', '.join(description['classes'])}, but the folder has "
                        f"{', '.join(validation.classes)}")
    model = _build(description)
    model.load_state_dict(state)
    scores = evaluate_clips(model.to(device), validation, device, args.amp, args.workers)
    print("  ".join(f"{name} {100 * value:.2f} %" for name, value in scores.items()))
    return 0


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Trains or evaluates as the command line says and returns an exit code."""
    args, device = read_options(_parser(), argv)
    shape = {"frames": args.frames, "size": args.size}
    validation = VideoClips(
        args.data_dir, args.val_split, **shape, train=False, clips=args.clips, crops=args.crops)
    if args.evaluate:
        return _evaluate_file(args, validation, device)
    train = VideoClips(args.data_dir, args.train_split, **shape, train=True, hflip=args.hflip)
    if train.classes != validation.classes:
        raise UserError(f"the training split has the classes {', '.join(train.classes)}, but the validation split "
                        f"{', '.join(validation.classes)}")
    description = {"model": args.model, "model_args": args.model_kwargs, "classes": train.classes, **shape}
    torch.manual_seed(args.seed)
    model = _build(description, args.pretrained).to(device)

    def loss(batch: Any) -> torch.Tensor:
        clips, labels = batch
        return F.cross_entropy(model(clips.to(device)).float(), labels.to(device), label_smoothing=args.smoothing)

    folder = run_folder(args, args.model)
    print(f"{len(train)} training and {len(validation)} validation videos of {len(train.classes)} classes; "
          f"{args.model}, {args.frames} frames of {args.size}x{args.size}, on {device}; run {folder}", flush=True)
    best = run_training(Training(
        model, loss, lambda: evaluate_clips(model, validation, device, args.amp, args.workers), "top1", train,
        description, args, folder, max_unreadable=args.max_unreadable))
    print(f"best validation top1 {100 * best:.2f} %; weights in {folder / 'model_best.safetensors'}")
    return 0
