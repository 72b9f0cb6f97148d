"""The command behind tools/validate.py: accuracy of a checkpoint, or of published weights, on a dataset."""
import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset

from ..data import BUNDLED, class_names, create_dataset, create_eval_loader
from ..errors import UserError, tool
from .arguments import Parser, add_data_arguments, add_device_arguments, add_model_arguments
from .checkpoint import Description
from .evaluation import MAX_CONFUSION_CLASSES, Evaluation, evaluate
from .label_maps import NAMED_SPLITS, RealAccuracy, read_valid_labels
from .logs import write_rows
from .loop import create_autocast
from .model import load_classifier
from .reports import plot_mistakes, write_classes
from .run_directory import atomic_path, check_writable, make_folder

__all__ = ["checkpoint_arguments", "main", "resolve_device", "table_format"]


def checkpoint_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds what names the weights, with `nargs` several; shared by validate.py and predict.py."""
    group = parser.add_argument_group("weights")
    group.add_argument("--checkpoint", metavar="FILE", nargs=nargs,
                       help="weights; those of a run also say model and classes")
    group.add_argument("--use-ema", action=argparse.BooleanOptionalAction, default=False,
                       help="use the averaged weights that belong to the checkpoint")


def table_format(path: str | None, given: str | None = None) -> str:
    """Returns "csv" or "json" for an output file, by `given` or the file's ending; checks that it can be written.

    Raises:
        UserError: neither says the format, or the folder cannot be written.
    """
    if path is None:
        return given or "csv"
    ending = Path(path).suffix.lower().lstrip(".")
    if given is None and ending not in ("csv", "json"):
        raise UserError(f"output file {path} must end in .csv or .json")
    if Path(path).is_dir():
        raise UserError(f"output file {path} is a folder")
    check_writable(Path(path).parent)
    return given or ending


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s [options]",
                    description="Evaluate classifiers on a split: loss, accuracy, calibration, speed.")
    checkpoint_arguments(parser, nargs="+")
    group = add_data_arguments(parser)
    group.add_argument("--split", default="validation", metavar="NAME", help="split to evaluate")
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images a step")
    group.add_argument("--valid-labels", metavar="FILE",
                       help="for a split with some of the model's classes, or in another order: text file with the "
                       f"index of the model's class for each class of the split, or {', '.join(NAMED_SPLITS)}")
    group.add_argument("--real-labels", metavar="FILE",
                       help="accuracy by several right classes an image as well: JSON list of lists of class indices, "
                       "or imagenet-real")
    add_model_arguments(parser)
    add_device_arguments(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--top-k", type=int, nargs="+", default=[], metavar="N",
                       help="further accuracies: an image's class is among the N most probable")
    group.add_argument("--tta", choices=("hflip",), help="average over the image and its mirror image")
    group = parser.add_argument_group("results")
    group.add_argument("--results-file", metavar="FILE", help="write the results to this file, a row a checkpoint")
    group.add_argument("--results-format", choices=("csv", "json"), help="its format (default: by its ending)")
    group.add_argument("--classes-file", metavar="FILE", help="write precision, recall and F1 of each class to it")
    group.add_argument("--mistakes-file", metavar="FILE", help="draw the most confident mistakes to this PNG")
    group.add_argument("--mistakes", type=int, default=24, metavar="N", help="how many of them")
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says; returns 0, or 2 after one line on stderr about the input."""
    args = _parser().parse_args(argv)
    results_format = _check(args)
    device = resolve_device(args.device)
    checkpoints = args.checkpoint or [None]
    rows = []
    for checkpoint in checkpoints:
        args.checkpoint = checkpoint
        rows.append(_evaluate(args, device))
    if args.results_file:
        _write(Path(args.results_file), rows, results_format)
    return 0


def _check(args: argparse.Namespace) -> str:
    """Refuses bad options before anything is loaded; returns the format of the results."""
    for name, least in (("batch_size", 1), ("mistakes", 1), ("workers", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}")
    if args.top_k and min(args.top_k) < 1:
        raise UserError(f"--top-k must be at least 1, not {min(args.top_k)}")
    args.top_k = sorted({*args.top_k} - {1, 5})     # which are always there
    if args.valid_labels and args.real_labels:
        raise UserError("--valid-labels and --real-labels are for different splits: give one of them")
    if len(args.checkpoint or []) > 1 and (args.classes_file or args.mistakes_file):
        raise UserError("--classes-file and --mistakes-file are for one checkpoint")
    for name, ending in ((args.classes_file, ".csv"), (args.mistakes_file, ".png")):
        if name is not None:
            if not name.lower().endswith(ending) or Path(name).is_dir():
                raise UserError(f"output file {name} must be a file that ends in {ending}")
            check_writable(Path(name).parent)
    if args.data_cache:
        check_writable(Path(args.data_cache))
    return table_format(args.results_file, args.results_format)


def _evaluate(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Evaluates one model, prints its line and writes its own files; returns its row of results."""
    model, description = load_classifier(args)
    valid = read_valid_labels(args.valid_labels, description.num_classes) if args.valid_labels else None
    dataset = _create_dataset(args, description)
    names = class_names(dataset) or []
    if valid is not None and names and len(names) != len(valid):
        raise UserError(f"the split has {len(names)} classes, --valid-labels {args.valid_labels} names {len(valid)}")
    real = RealAccuracy(args.real_labels, dataset, description.num_classes) if args.real_labels else None
    if args.mistakes_file and isinstance(dataset, IterableDataset):
        raise UserError("--mistakes-file needs a dataset whose images can be read in any order")
    classes = description.num_classes if valid is None else len(valid)
    if args.classes_file and classes > MAX_CONFUSION_CLASSES:
        raise UserError(f"--classes-file is for up to {MAX_CONFUSION_CLASSES} classes, not {classes}")
    loader = create_eval_loader(dataset, description.data_config, device, batch_size=args.batch_size,
                                workers=args.workers)
    begin = time.perf_counter()
    result = evaluate(model.to(device), loader, classes, device, create_autocast(args, device), progress=True,
                      flip=args.tta == "hflip", valid=None if valid is None else valid.to(device),
                      mistakes=args.mistakes if args.mistakes_file else 0, topk=args.top_k,
                      observe=real.update if real else None)
    row = _row(args, description, model, result, time.perf_counter() - begin) | (real.metrics() if real else {})
    more = [*(f"top{k}" for k in result.topk), *(("real_top1", "real_top5") if real else ())]
    print(f"{row['model']} on {args.dataset or description.dataset or args.data_dir}, {args.split}: {result.images} "
          f"images, loss {result.loss:.4f}, top1 {result.top1:.2f} %, top5 {result.top5:.2f} %, "
          + "".join(f"{name} {row[name]:.2f} %, " for name in more)
          + f"ece {result.ece:.2f} %, {row['images_per_second']:.0f} img/s", flush=True)
    labels = names if valid is not None else description.label_names
    _write_reports(args, result, dataset, [*labels, *map(str, range(len(labels), classes))])
    return row


def _write_reports(args: argparse.Namespace, result: Evaluation, dataset: Any, labels: list[str]) -> None:
    """Writes the files about single classes and images that were asked for."""
    if args.classes_file and result.confusion is not None:
        make_folder(Path(args.classes_file).parent)
        write_classes(Path(args.classes_file), result.confusion, labels)
    if args.mistakes_file:
        make_folder(Path(args.mistakes_file).parent)
        plot_mistakes(Path(args.mistakes_file), result.mistakes, dataset, labels)


def resolve_device(name: str) -> torch.device:
    """Returns the device, or raises a `UserError` if this machine does not have it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"cannot use --device {name}: {error}") from error
    return device


def _create_dataset(args: argparse.Namespace, description: Description) -> Any:
    """Opens the split, with the classes of the checkpoint for an image folder."""
    # a checkpoint may say that its data come with a package, but not what is to be fetched
    known = description.dataset if description.dataset in BUNDLED else ""
    name = args.dataset or ("" if args.data_dir else known)
    class_map: Any = args.class_map or None
    if not name and not class_map and description.label_names and not args.valid_labels:
        class_map = {label: index for index, label in enumerate(description.label_names)}
    mode = args.input_img_mode or ("L" if description.data_config["input_size"][0] == 1 else "RGB")
    return create_dataset(name, args.data_dir, args.split, class_map=class_map, input_img_mode=mode,
                          download=args.dataset_download, batch_size=args.batch_size, input_key=args.input_key,
                          target_key=args.target_key, cache=args.data_cache)


def _row(
    args: argparse.Namespace, description: Description, model: nn.Module, result: Evaluation, seconds: float
) -> dict[str, Any]:
    """Returns the results under timm's column names."""
    config = description.data_config
    return {
        "model": description.architecture,
        "checkpoint": args.checkpoint or "pretrained",
        "num_images": result.images,
        "loss": round(result.loss, 6),
        "top1": round(result.top1, 4),
        "top1_err": round(100 - result.top1, 4),
        "top5": round(result.top5, 4),
        "top5_err": round(100 - result.top5, 4),
        **{f"top{k}": round(share, 4) for k, share in result.topk.items()},
        "ece": round(result.ece, 4),
        "param_count": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        "images_per_second": round(result.images / seconds, 2),
    }


def _write(path: Path, rows: list[dict[str, Any]], results_format: str) -> None:
    make_folder(path.parent)
    if results_format == "csv":
        write_rows(path, rows)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2), encoding="utf-8")
