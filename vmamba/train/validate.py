"""The command behind tools/validate.py: accuracy of a checkpoint, or of published weights, on a dataset."""
import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data import create_dataset, create_eval_loader
from ..errors import UserError, tool
from .arguments import Parser, add_data_arguments, add_device_arguments, add_model_arguments
from .checkpoint import Description
from .evaluation import Evaluation, evaluate
from .loop import create_autocast
from .model import load_classifier
from .run_directory import atomic_path, check_writable, make_folder

__all__ = ["checkpoint_arguments", "main", "resolve_device", "table_format"]


def checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what names the weights; shared by validate.py and predict.py."""
    group = parser.add_argument_group("weights")
    group.add_argument("--checkpoint", metavar="FILE", help="weights; those of a run also say model and classes")
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
                    description="Evaluate a classifier: loss, top-1 and top-5 accuracy on a split.")
    checkpoint_arguments(parser)
    group = add_data_arguments(parser)
    group.add_argument("--split", default="validation", metavar="NAME", help="split to evaluate")
    group.add_argument("-b", "--batch-size", type=int, default=128, metavar="N", help="images a step")
    add_model_arguments(parser)
    add_device_arguments(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--results-file", metavar="FILE", help="write the results to this file")
    group.add_argument("--results-format", choices=("csv", "json"), help="its format (default: by its ending)")
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates as the command line says; returns 0, or 2 after one line on stderr about the input."""
    args = _parser().parse_args(argv)
    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1 and --workers at least 0")
    results_format = table_format(args.results_file, args.results_format)
    device = resolve_device(args.device)
    model, description = load_classifier(args)
    dataset = _create_dataset(args, description)
    loader = create_eval_loader(dataset, description.data_config, device, batch_size=args.batch_size,
                                workers=args.workers)
    result = evaluate(model.to(device), loader, description.num_classes, device, create_autocast(args, device),
                      progress=True)
    row = _row(args, description, model, result)
    print(f"{row['model']} on {args.dataset or description.dataset or args.data_dir}, {args.split}: {result.images} "
          f"images, loss {result.loss:.4f}, top1 {result.top1:.2f} %, top5 {result.top5:.2f} %")
    if args.results_file:
        _write(Path(args.results_file), row, results_format)
    return 0


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
    name = args.dataset or ("" if args.data_dir else description.dataset)
    class_map: Any = args.class_map or None
    if not name and not class_map and description.label_names:
        class_map = {label: index for index, label in enumerate(description.label_names)}
    mode = args.input_img_mode or ("L" if description.data_config["input_size"][0] == 1 else "RGB")
    return create_dataset(name, args.data_dir, args.split, class_map=class_map, input_img_mode=mode,
                          download=args.dataset_download, batch_size=args.batch_size, input_key=args.input_key,
                          target_key=args.target_key)


def _row(args: argparse.Namespace, description: Description, model: nn.Module, result: Evaluation) -> dict[str, Any]:
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
        "param_count": round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
    }


def _write(path: Path, row: dict[str, Any], results_format: str) -> None:
    make_folder(path.parent)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if results_format == "json":
            json.dump(row, file, indent=2)
        else:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row)
