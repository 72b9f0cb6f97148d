"""The command behind tools/predict_change.py: maps of change of images of any size, by overlapping windows."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vmamba.data.change_augmentation import normalise
from vmamba.data.change_pairs import SUFFIXES, read_image
from vmamba.errors import UserError, require, tool
from vmamba.tasks.loop import load_model_file
from vmamba.train.arguments import Parser
from vmamba.train.run_directory import make_folder
from vmamba.train.validate import resolve_device

from .metrics import class_maps
from .train import build_described

__all__ = ["main", "predict_windows"]

# TIFF tags that say where on earth an image lies (OGC GeoTIFF standard 1.1, annex B): scale, tie points, matrix, keys
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_COLOURS = np.array([
    (0, 0, 0), (255, 0, 0), (255, 200, 0), (0, 200, 0), (0, 120, 255), (200, 0, 255), (0, 255, 255), (255, 128, 0)],
    dtype=np.uint8)


def _starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin, so that they cover a side and the last one ends with it."""
    if length <= window:
        return [0]
    count = -(-(length - overlap) // (window - overlap))
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def _blend(height: int, width: int) -> Tensor:
    """Weights of a window's pixels, greatest in the middle and nowhere 0, [H, W]."""
    sides = [torch.minimum(torch.arange(n) + 1, n - torch.arange(n)).float() for n in (height, width)]
    return sides[0][:, None] * sides[1]


@torch.inference_mode()
def predict_windows(
        model: nn.Module, first: Tensor, second: Tensor, window: int, overlap: int, amp: bool = False,
) -> dict[str, Tensor]:
    """Probabilities of a pair of any size by windows that overlap, blended.

    Args:
        model: A system of this package, on the device to run on.
        first: Normalised image [3, H, W], on any device.
        second: The other date, of the same shape.
        window: Side of the windows in pixels.
        overlap: Pixels that neighbouring windows share, less than ``window``.
        amp: bfloat16 by autocast.

    Returns:
        ``[classes, H, W]`` by output, float32 on the CPU.
    """
    height, width = first.shape[1:]
    device = next(model.parameters()).device
    total: dict[str, Tensor] = {}
    weights = torch.zeros(height, width)
    for top in _starts(height, window, overlap):
        for left in _starts(width, window, overlap):
            part = (slice(None), slice(top, top + window), slice(left, left + window))
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                logits = model(first[part][None].to(device), second[part][None].to(device))
            for name, x in logits.items():
                probability = x[0].float().softmax(0).cpu()
                blend = _blend(*probability.shape[1:])
                total.setdefault(name, torch.zeros(x.shape[1], height, width))[part] += blend * probability
            weights[part[1:]] += blend
    return {name: x / weights for name, x in total.items()}


def _parser() -> Parser:
    parser = Parser(usage="%(prog)s --checkpoint FILE --first PATH --second PATH --output DIR [options]",
                    description="Write maps of what changed between images, and overlays of them.")
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="weights that tools/train_change.py wrote")
    add("--first", required=True, type=Path, metavar="PATH", help="image of the first date, or a folder of them")
    add("--second", required=True, type=Path, metavar="PATH", help="of the second date; files of one name in a folder")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    add("--format", choices=("png", "tif"), default="png",
        help="of the maps; tif keeps the place on earth of a GeoTIFF of the first date")
    add("--window", type=int, default=512, metavar="N", help="side of the windows, pixels")
    add("--overlap", type=int, default=128, metavar="N", help="pixels that neighbouring windows share")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    add("--amp", action="store_true", help="bfloat16 by torch.autocast")
    return parser


def _pairs(first: Path, second: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of files that the options name."""
    if first.is_dir() != second.is_dir():
        raise UserError("--first and --second must both be files or both be folders")
    if not first.is_dir():
        yield first, second
        return
    names = [path for path in sorted(first.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not names:
        raise UserError(f"no images in {first}")
    for path in names:
        if not (second / path.name).exists():
            raise UserError(f"{path} has no counterpart in {second}")
        yield path, second / path.name


@contextmanager
def _images_of_any_size() -> Iterator[None]:
    """Lets PIL open images that it takes for decompression bombs elsewhere: aerial images are that large."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _geo_tags(path: Path) -> list[tuple[int, int, int, Any, bool]]:
    """The tags of a GeoTIFF that another one of the same grid takes over; none for other images."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return []
    with require("tifffile").TiffFile(path) as file:
        tags = file.pages[0].tags
        return [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag.code in _GEO_TAGS]


def _write(folder: Path, name: str, classes: np.ndarray, shown: np.ndarray, kind: str, tags: list) -> None:
    """Writes a map of classes [H, W] uint8 and its overlay on an image [H, W, 3] uint8."""
    if kind == "tif":
        require("tifffile").imwrite(folder / f"{name}.tif", classes, compression="zlib", extratags=tags)
    else:
        # class 1 of 2 is white, as masks of change are
        binary = name.endswith(("_change", "_building"))
        Image.fromarray(classes * 255 if binary else classes).save(folder / f"{name}.png")
    coloured = 0.5 * shown + 0.5 * _COLOURS[classes % len(_COLOURS)]
    overlay = np.where(classes[..., None] > 0, coloured, shown).astype(np.uint8)
    Image.fromarray(overlay).save(folder / f"{name}_overlay.png")


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts as the command line says and returns an exit code."""
    args = _parser().parse_args(argv)
    if not 0 <= args.overlap < args.window:
        raise UserError(f"--overlap must lie between 0 and --window {args.window}, got {args.overlap}")
    device = resolve_device(args.device)
    state, description = load_model_file(args.checkpoint)
    model = build_described(description)
    model.load_state_dict(state)
    model.eval().to(device)
    pairs = list(_pairs(args.first, args.second))
    make_folder(args.output)
    for first_path, second_path in pairs:
        with _images_of_any_size():
            first, second = read_image(first_path), read_image(second_path)
        if first.shape != second.shape:
            raise UserError(f"{second_path} is {second.shape[0]} x {second.shape[1]} pixels, but {first_path} is "
                            f"{first.shape[0]} x {first.shape[1]}")
        found = predict_windows(
            model, normalise(first), normalise(second), args.window, args.overlap, args.amp)
        maps = class_maps({name: x[None] for name, x in found.items()})
        if "first" in maps:     # land cover counts where something changed
            maps = {name: x if name == "change" else x * maps["change"] for name, x in maps.items()}
        for name, classes in maps.items():
            shown = first if name in ("first", "building") else second
            _write(args.output, f"{first_path.stem}_{name}", classes[0].numpy().astype(np.uint8), shown, args.format,
                   _geo_tags(first_path))
        counted = maps["change" if "change" in maps else "building"]
        print(f"{first_path}: {100 * float(counted[0].float().mean()):.2f} % of the pixels"
              f" {'changed' if 'change' in maps else 'are buildings'}")
    return 0
