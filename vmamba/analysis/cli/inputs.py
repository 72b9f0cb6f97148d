"""What the commands share: the model, the images, and where the results go."""
from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

import vmamba.models  # noqa: F401  (registers the models)
from vmamba.data.datasets import UNREADABLE
from vmamba.errors import UserError
from vmamba.train.arguments import add_model_arguments
from vmamba.train.checkpoint import Description
from vmamba.train.logs import write_rows
from vmamba.train.model import build_classifier, data_config_for, load_classifier, model_arguments
from vmamba.train.predict import find_images
from vmamba.train.run_directory import check_writable
from vmamba.train.validate import checkpoint_arguments, resolve_device

from ..pictures import shown_image

__all__ = ["Photograph", "add_image_arguments", "add_weight_arguments", "batches", "load_images", "load_model",
           "write_table"]


@dataclass(frozen=True)
class Photograph:
    """An image that is looked at.

    Attributes:
        name: File name without its ending, different from those of the others.
        pixels: As the model takes it, [C, H, W].
        shown: As people see it, [H, W, 3] from 0 to 1.
    """

    name: str
    pixels: Tensor
    shown: Tensor


def add_weight_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds what names model and weights, the device and the folder of the results."""
    checkpoint_arguments(parser)
    add_model_arguments(parser)
    add = parser.add_argument_group("running").add_argument
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    add("-b", "--batch-size", type=int, default=8, metavar="N", help="images a step")
    add("--output", type=Path, default=Path(output), metavar="DIR", help="folder of the pictures and tables")


def add_image_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds image files and folders, and what :func:`add_weight_arguments` adds."""
    parser.add_argument("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files and folders")
    add_weight_arguments(parser, output)


def load_model(args: argparse.Namespace) -> tuple[Any, Description, torch.device]:
    """Builds the model that the options name, on its device, ready for evaluation.

    A model that is named without weights is taken as it is initialised, and a note says so.

    Raises:
        UserError: no such model, weights or device, or the results could not be written.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {args.batch_size}")
    check_writable(args.output)
    device = resolve_device(args.device)
    if args.checkpoint or args.pretrained or not args.model:
        model, description = load_classifier(args)
        return model.to(device), description, device
    channels = args.input_size[0] if args.input_size else args.in_chans
    model = build_classifier(
        args.model, num_classes=args.num_classes, in_chans=channels, **model_arguments(args)).eval()
    config = data_config_for(model, args)
    print(f"note: no weights were named: this is {args.model} as it is initialised", file=sys.stderr)
    return model.to(device), Description(
        args.model, model.num_classes, config["input_size"][0], model_arguments(args), data_config=config), device


def load_images(inputs: Sequence[str], description: Description) -> list[Photograph]:
    """Reads image files and folders as the model takes images.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    paths = find_images(inputs)
    config = description.data_config
    transform: Any = create_transform(is_training=False, **config)
    repeated = {name for name, count in Counter(path.stem for path in paths).items() if count > 1}
    found = []
    for number, path in enumerate(paths, 1):
        try:
            with Image.open(path) as image:
                pixels = transform(image.convert("L" if config["input_size"][0] == 1 else "RGB"))
        except UNREADABLE as error:
            raise UserError(f"cannot read image {path}: {getattr(error, 'strerror', None) or error}") from error
        name = f"{path.stem}_{number}" if path.stem in repeated else path.stem
        found.append(Photograph(name, pixels, shown_image(pixels, config)))
    return found


def batches(images: Sequence[Photograph], size: int, device: torch.device) -> Iterator[Tensor]:
    """The images, ``size`` at a time: [B, C, H, W]."""
    for start in range(0, len(images), size):
        yield torch.stack([image.pixels for image in images[start:start + size]]).to(device)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of one form as CSV, numbers to six digits."""
    write_rows(path, [
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows])
