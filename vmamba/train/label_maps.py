"""Splits of ImageNet that do not have one class of the model an image: some of the classes, or several right ones.

* ImageNet-A and ImageNet-R (Hendrycks et al. 2021, arXiv:1907.07174 and arXiv:2006.16241) have 200 of the classes, in
  folders of their own order. Only the logits of these classes count.
* ImageNet-V2 (Recht et al. 2019, arXiv:1902.10811) has all classes, in folders called 0 to 999.
* ImageNet-ReaL (Beyer et al. 2020, arXiv:2006.07159) names all classes that are right for each validation image, none
  for some, which do not count then.

The index lists and the labels are those that come with timm.
"""
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import RealLabelsImagenet
from torch import Tensor

from ..errors import UserError

__all__ = ["NAMED_SPLITS", "RealAccuracy", "read_valid_labels"]

NAMED_SPLITS = ("imagenet-a", "imagenet-r", "imagenet-v2")
_CLASSES = 1000
_IMAGES = "ILSVRC2012_val_{:08d}.JPEG"


def read_valid_labels(source: str, num_classes: int) -> Tensor:
    """Reads which classes of the model the classes of a split stand for.

    Args:
        source: one of `NAMED_SPLITS`, or a text file: line n, from 0, holds the index of the model's class that class n
            of the split stands for.
        num_classes: classes of the model.

    Returns:
        Indices of the model's classes, [classes of the split] int64.

    Raises:
        UserError: the file cannot be read, or does not hold different classes of the model.
    """
    if source in NAMED_SPLITS:
        if num_classes != _CLASSES:
            raise UserError(f"--valid-labels {source} is for models of {_CLASSES} classes, not {num_classes}")
        if source == "imagenet-v2":
            return torch.arange(_CLASSES)
        lists = importlib.resources.files("timm.data") / "_info"
        text = (lists / f"{source.replace('-', '_')}_indices.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read --valid-labels {source}: {getattr(error, 'strerror', None) or error}; "
                            f"known names are {', '.join(NAMED_SPLITS)}") from error
    try:
        labels = [int(line) for line in text.split()]
    except ValueError as error:
        raise UserError(f"cannot read --valid-labels {source}: {error}") from error
    if not labels or min(labels) < 0 or max(labels) >= num_classes or len(set(labels)) < len(labels):
        raise UserError(f"--valid-labels {source} must hold different class indices from 0 to {num_classes - 1}")
    return torch.tensor(labels)


class RealAccuracy:
    """Accuracy by labels of which an image may have several, or none; images are to come in the order of the split.

    Args:
        source: JSON file with a list of class indices for each image of the split, in the order of their names, or
            "imagenet-real".
        dataset: the split; its images have the names of ImageNet's validation split.
        num_classes: classes of the model.

    Raises:
        UserError: the file cannot be read, or does not fit the images and classes.
    """

    def __init__(self, source: str, dataset: Any, num_classes: int):
        path = None if source == "imagenet-real" else source
        if path is not None:
            _check_real_labels(path, num_classes)
        elif num_classes != _CLASSES:
            raise UserError(f"--real-labels {source} is for models of {_CLASSES} classes, not {num_classes}")
        try:
            names = dataset.filenames(basename=True)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise UserError("--real-labels needs images in files: a folder or a tar file") from error
        try:
            self._timm: Any = RealLabelsImagenet(names, real_json=path, topk=(1, min(5, num_classes)))
        except AssertionError as error:
            raise UserError(f"the split has {len(names)} images, --real-labels {source} another number") from error
        missing = [name for name in names if name not in self._timm.real_labels]
        if missing:
            raise UserError(f"image {missing[0]} has no entry in --real-labels {source}: images have to be called "
                            f"{_IMAGES.format(1)} and so on")

    def update(self, logits: Tensor) -> None:
        """Takes the logits [B, num_classes] of the next images."""
        self._timm.add_result(logits)

    def metrics(self) -> dict[str, float]:
        """Returns `real_top1` and `real_top5`, percent, and `real_images`, the images that have labels."""
        first, last = self._timm.topk
        return {"real_top1": self._timm.get_accuracy(first), "real_top5": self._timm.get_accuracy(last),
                "real_images": len(self._timm.is_correct[first])}


def _check_real_labels(path: str, num_classes: int) -> None:
    """Refuses a file that is not a list with a list of classes for each image."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --real-labels {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, Sequence) or not content or not all(
            isinstance(labels, list) and all(type(label) is int and 0 <= label < num_classes for label in labels)
            for labels in content) or not any(content):
        raise UserError(f"--real-labels {path} must hold a list of class indices from 0 to {num_classes - 1} for each "
                        "image, such as [[3], [0, 2], []]")
