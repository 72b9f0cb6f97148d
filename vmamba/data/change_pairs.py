"""Pairs of images of one place with labels, read from the folders in which change detection's data sets come.

| layout | data sets | folders below the split (train, val, test) |
|---|---|---|
| `levir` | LEVIR-CD, LEVIR-CD+ | `A`, `B`, `label` |
| `whu` | WHU-CD cut into tiles | `A`, `B`, `label` |
| `sysu` | SYSU-CD | `time1`, `time2`, `label` |
| `second` | SECOND | `im1`, `im2`, `label1`, `label2` |
| `xbd` | xBD | `images` and `targets`, both dates in one folder |

Where there is no folder of the split but a file `list/SPLIT.txt` of names, as in the tiles of 256 x 256 pixels that are
passed on of LEVIR-CD and WHU-CD, the folders lie in the root and hold all splits.

Files of a pair have one name, in `xbd` but for `pre_disaster` and `post_disaster`. Masks of change are 0 and 255 or 1.
Land cover is SECOND's colours, or class numbers 0 to 6. Masks of `xbd` are the `_target.png` files of its challenge:
0 and 1 before the disaster (building), 0 to 4 after it (damage).
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..errors import UserError, near_names
from .datasets import UNREADABLE, UnreadableImageError

__all__ = ["LAYOUTS", "SECOND_COLOURS", "ChangePairs", "Pair", "find_pairs", "read_image"]

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
SECOND_COLOURS = (
    (255, 255, 255), (0, 0, 255), (128, 128, 128), (0, 128, 0), (0, 255, 0), (128, 0, 0), (255, 0, 0))
"""SECOND's colours: unchanged, water, ground, low vegetation, tree, building, playground."""


@dataclass(frozen=True)
class Pair:
    """Files of one pair.

    Attributes:
        name: what it is called.
        first: image of the first date.
        second: image of the second date.
        labels: masks by name.
    """

    name: str
    first: Path
    second: Path
    labels: dict[str, Path]


@dataclass(frozen=True)
class Layout:
    """How a data set lies in its folders.

    Attributes:
        task: "bcd", "scd" or "bda".
        classes: greatest class of each mask.
        folders: folders of the first image, the second and each mask.
        names: what is added to a pair's name, by the same keys.
    """

    task: str
    classes: dict[str, int]
    folders: dict[str, str]
    names: dict[str, str]


def _one_name(task: str, classes: dict[str, int], **folders: str) -> Layout:
    return Layout(task, classes, folders, dict.fromkeys(folders, ""))


LAYOUTS = {
    "levir": _one_name("bcd", {"change": 1}, first="A", second="B", change="label"),
    "whu": _one_name("bcd", {"change": 1}, first="A", second="B", change="label"),
    "sysu": _one_name("bcd", {"change": 1}, first="time1", second="time2", change="label"),
    "second": Layout(
        "scd", {"first": 6, "second": 6},
        {"first": "im1", "second": "im2", "first_mask": "label1", "second_mask": "label2"},
        dict.fromkeys(("first", "second", "first_mask", "second_mask"), "")),
    "xbd": Layout(
        "bda", {"building": 1, "damage": 4},
        {"first": "images", "second": "images", "building": "targets", "damage": "targets"},
        {"first": "_pre_disaster", "second": "_post_disaster", "building": "_pre_disaster_target",
         "damage": "_post_disaster_target"}),
}


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Images of a folder whose names end like that, by the rest of their names."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there")
    return {
        path.stem.removesuffix(ending): path for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.stem.endswith(ending)}


def find_pairs(root: str | Path, split: str, layout: str) -> list[Pair]:
    """Lists the pairs of a split by name.

    Raises:
        UserError: unknown layout, a folder or list is missing or empty, or a file of a pair is.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}{near_names(layout, LAYOUTS)}; known: {', '.join(LAYOUTS)}")
    known = LAYOUTS[layout]
    listed = Path(root) / "list" / f"{split}.txt"
    by_list = listed.is_file() and not (Path(root) / split).is_dir()
    base = Path(root) if by_list else Path(root) / split
    found = {part: _files(base / folder, known.names[part]) for part, folder in known.folders.items()}
    names = _listed_names(listed, found["first"], known.names["first"]) if by_list else list(found["first"])
    if not names:
        raise UserError(f"no images in {listed if by_list else base / known.folders['first']}")
    for part, files in found.items():
        missing = [name for name in names if name not in files]
        if missing:
            raise UserError(f"{found['first'][missing[0]]} has no counterpart in {base / known.folders[part]}")
    masks = [part for part in found if part not in ("first", "second")]
    return [Pair(name, found["first"][name], found["second"][name], {
        part.removesuffix("_mask"): found[part][name] for part in masks}) for name in names]


def _listed_names(path: Path, known: Mapping[str, Path], ending: str) -> list[str]:
    """Names of the pairs that a list of files has, a file a line, with or without a suffix."""
    found = []
    for line in path.read_text().splitlines():
        file = Path(line.strip())
        name = (file.stem if file.suffix.lower() in SUFFIXES else file.name).removesuffix(ending)
        if name and name not in known:
            raise UserError(f"{path} lists {file}, which is not there")
        if name:
            found.append(name)
    return found


def _read(path: Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if mode and image.mode.startswith(("I", "F")):      # conversion would clip them
                raise UnreadableImageError(f"image {path} has more than 8 bits a channel: scale it to 8 first")
            return np.asarray(image.convert(mode) if mode else image)
    except UNREADABLE as error:
        raise UnreadableImageError(f"cannot read image {path}: {error}") from None


def read_image(path: Path) -> np.ndarray:
    """An image as [H, W, 3] uint8, RGB.

    Raises:
        UnreadableImageError: the file is no image.
    """
    return _read(path, "RGB")


def _read_mask(path: Path, greatest: int) -> np.ndarray:
    """Classes of a mask, [H, W] int64 of 0 to `greatest`, 255 where they do not count."""
    values = _read(path, None)
    if values.ndim == 3:
        colours = {colour: index for index, colour in enumerate(SECOND_COLOURS)} if greatest == 6 else {
            (value, value, value): value for value in range(256)}
        flat, index = np.unique(values[..., :3].reshape(-1, 3), axis=0, return_inverse=True)
        found = [(int(red), int(green), int(blue)) for red, green, blue in flat]
        unknown = [colour for colour in found if colour not in colours]
        if unknown:
            raise UserError(f"mask {path} has the unknown colour {unknown[0]}")
        values = np.array([colours[colour] for colour in found])[index].reshape(values.shape[:2])
    values = values.astype(np.int64)
    if greatest == 1:
        values = np.where(values == 255, 1, values)
    others = values[(values > greatest) & (values != 255)]
    if others.size:
        raise UserError(f"mask {path} has the unknown class {int(others[0])}, but there are 0 to {greatest}")
    return values


class ChangePairs(Dataset):
    """Pairs of a split as (first image, second image, labels by name), ready for a model.

    Args:
        root: folder of the data set.
        split: folder of the split in it.
        layout: a key of `LAYOUTS`.
        transform: given both images [H, W, 3] uint8 and the masks [H, W] int64 by name, returns the images as float
            tensors [3, H, W] and the masks as tensors.

    Raises:
        UserError: see `find_pairs`; by reading, images of different sizes, an unreadable file, or an unknown class.
    """

    def __init__(self, root: str | Path, split: str, layout: str, transform: Callable):
        self.pairs = find_pairs(root, split, layout)
        self.layout, self.transform = LAYOUTS[layout], transform
        self.task = self.layout.task

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Images [H, W, 3] and masks [H, W] of a pair."""
        pair = self.pairs[index]
        first, second = read_image(pair.first), read_image(pair.second)
        masks = {name: _read_mask(path, self.layout.classes[name]) for name, path in pair.labels.items()}
        parts = {pair.second: second, **{path: masks[name] for name, path in pair.labels.items()}}
        for path, part in parts.items():
            if part.shape[:2] != first.shape[:2]:
                raise UserError(
                    f"{path} is {part.shape[0]} x {part.shape[1]} pixels, but {pair.first} is "
                    f"{first.shape[0]} x {first.shape[1]}")
        if self.task == "scd":
            ignored = (masks["first"] == 255) | (masks["second"] == 255)
            masks["change"] = np.where(ignored, 255, (masks["first"] > 0) | (masks["second"] > 0)).astype(np.int64)
        return first, second, masks

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        return self.transform(*self.read(index))
