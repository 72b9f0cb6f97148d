"""The command behind tools/predict.py: the most probable classes of image files and folders."""
import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, is_img_extension
from torch import Tensor

from ..data.datasets import UNREADABLE
from ..errors import UserError, require, tool
from ..export import ending, load_exported
from .arguments import Parser, add_device_arguments, add_model_arguments
from .checkpoint import Description
from .loop import create_autocast
from .model import class_names, load_classifier
from .run_directory import atomic_path, make_folder
from .validate import checkpoint_arguments, resolve_device, table_format

__all__ = ["Prediction", "main"]

# what an exported file has settled
_IN_THE_FILE = ("checkpoint", "use_ema", "pretrained", "num_classes", "gp", "in_chans", "img_size", "input_size",
                "crop_pct", "crop_mode", "mean", "std", "interpolation", "model_kwargs", "amp")


@dataclass
class Prediction:
    """The classes of one image, most probable first, or why there are none.

    Attributes:
        filename: the image file.
        classes: class names.
        indices: class indices.
        probabilities: softmax probabilities, 0 to 1.
        error: what is wrong with the file, "" for a good one.
    """

    filename: str
    classes: list[str]
    indices: list[int]
    probabilities: list[float]
    error: str = ""


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s IMAGE_OR_FOLDER ... [options]",
                    description="Classify image files, or all images in folders and their subfolders, by a "
                    "checkpoint, by published weights, or by an exported file (--model model.onnx).")
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files and folders")
    checkpoint_arguments(parser)
    add_model_arguments(parser)
    add_device_arguments(parser)
    group = parser.add_argument_group("prediction")
    group.add_argument("--topk", type=int, default=5, metavar="K", help="classes to name for each image")
    group.add_argument("-b", "--batch-size", type=int, default=32, metavar="N", help="images a step")
    group.add_argument("--output", metavar="FILE", help="write the predictions to this .csv or .json file as well")
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts as the command line says.

    Returns:
        Exit code: 0; 1 if some image could not be read (the others are predicted); 2 for bad input.
    """
    args = _parser().parse_args(argv)
    if args.topk < 1 or args.batch_size < 1:
        raise UserError("--topk and --batch-size must be at least 1")
    output_format = table_format(args.output)
    paths = find_images(args.inputs)
    device = resolve_device(args.device)
    classify, description = _load(args, device)
    names = description.label_names
    predictions = []
    bar = require("tqdm").tqdm(total=len(paths), unit="image", leave=False, disable=None)
    for prediction in _predict(classify, description, paths, names, args, device):
        predictions.append(prediction)
        bar.update()
        if prediction.error:
            bar.write(f"error: cannot read image {prediction.filename}: {prediction.error}", file=sys.stderr)
        else:
            pairs = zip(prediction.classes, prediction.probabilities, strict=True)
            bar.write(f"{prediction.filename}: " + ", ".join(f"{name} {100 * p:.1f} %" for name, p in pairs))
    bar.close()
    if args.output:
        _write(Path(args.output), predictions, output_format)
    unreadable = sum(bool(prediction.error) for prediction in predictions)
    if unreadable:
        print(f"error: {unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return int(unreadable > 0)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Returns the files named, and the image files in the folders named, sorted inside each folder.

    A file that is named but does not exist is kept if others do: it is reported when its turn comes.

    Raises:
        UserError: none of the inputs exists, or a folder holds no images.
    """
    paths: list[Path] = []
    if not any(Path(name).exists() for name in inputs):
        raise UserError(f"{', '.join(inputs)} does not exist")
    for name in inputs:
        path = Path(name)
        if not path.is_dir():
            paths.append(path)
            continue
        found = sorted(file for file in path.rglob("*") if file.is_file() and is_img_extension(file.suffix))
        if not found:
            raise UserError(f"folder {path} holds no images")
        paths += found
    return paths


def _load(args: argparse.Namespace, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Description]:
    """Returns what classifies, images to logits, and its description: a checkpoint's model or an exported file."""
    if args.model is None or ending(args.model) is None:
        model, description = load_classifier(args)
        description.label_names = class_names(model, description)
        return model.to(device), description
    defaults = _parser().parse_args(["-"])
    for name in _IN_THE_FILE:
        if getattr(args, name) != getattr(defaults, name):
            raise UserError(f"--{name.replace('_', '-')} does not go with the exported model {args.model}: "
                            "give it when exporting")
    exported = load_exported(args.model, device)
    return exported, Description(**json.loads(exported.description))


@torch.inference_mode()
def _predict(
    classify: Callable[[Tensor], Tensor], description: Description, paths: list[Path], names: list[str],
    args: argparse.Namespace, device: torch.device,
) -> Iterator[Prediction]:
    """Yields a prediction for each path, in order."""
    transform = create_transform(is_training=False, **description.data_config)
    mode = "L" if description.data_config["input_size"][0] == 1 else "RGB"
    autocast = create_autocast(args, device)
    for start in range(0, len(paths), args.batch_size):
        group = paths[start:start + args.batch_size]
        loaded = [_read(path, transform, mode) for path in group]
        images = [image for image in loaded if isinstance(image, Tensor)]
        best: Iterator[tuple[list[float], list[int]]] = iter(())
        if images:
            with autocast:
                logits = classify(torch.stack(images).to(device))
            values, indices = logits.float().softmax(-1).topk(min(args.topk, len(names)))
            best = zip(values.tolist(), indices.tolist(), strict=True)
        for path, image in zip(group, loaded, strict=True):
            if isinstance(image, str):
                yield Prediction(str(path), [], [], [], error=image)
            else:
                probabilities, classes = next(best)
                yield Prediction(str(path), [names[index] for index in classes], classes, probabilities)


def _read(path: Path, transform: Any, mode: str) -> Tensor | str:
    """Returns the transformed image, or one line about why it cannot be read."""
    try:
        with Image.open(path) as image:
            return transform(image.convert(mode))
    except UNREADABLE as error:
        return " ".join((getattr(error, "strerror", None) or str(error)).split())


def _write(path: Path, predictions: list[Prediction], output_format: str) -> None:
    """Writes a row or object for each image; unreadable ones have an error and no classes."""
    make_folder(path.parent)
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        if output_format == "json":
            json.dump([_as_json(prediction) for prediction in predictions], file, indent=2, ensure_ascii=False)
            return
        writer = csv.writer(file)
        ranks = range(max(len(prediction.classes) for prediction in predictions))
        columns = [f"top{rank + 1}_{what}" for rank in ranks for what in ("class", "index", "probability")]
        writer.writerow(["filename", *columns, "error"])
        for prediction in predictions:
            cells: list[Any] = []
            for triple in zip(prediction.classes, prediction.indices, prediction.probabilities, strict=True):
                cells += [*triple[:2], f"{triple[2]:.6f}"]
            cells += [""] * (len(columns) - len(cells))
            writer.writerow([prediction.filename, *cells, prediction.error])


def _as_json(prediction: Prediction) -> dict[str, Any]:
    if prediction.error:
        return {"filename": prediction.filename, "error": prediction.error}
    rows = zip(prediction.classes, prediction.indices, prediction.probabilities, strict=True)
    return {"filename": prediction.filename,
            "predictions": [{"class": name, "index": index, "probability": round(p, 6)} for name, index, p in rows]}
