"""Transforms of pairs by albumentations: one geometry for both dates and the masks, light of its own for each date."""
from collections.abc import Mapping

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from .augmentation import build_compose, build_transforms, draw

__all__ = ["ChangeTransform", "normalise"]

_GEOMETRY = [
    {"type": "HorizontalFlip", "p": 0.5}, {"type": "VerticalFlip", "p": 0.5}, {"type": "RandomRotate90", "p": 1.0}]
_LIGHT = [
    {"type": "RandomBrightnessContrast", "p": 0.5}, {"type": "HueSaturationValue", "p": 0.3},
    {"type": "GaussianBlur", "blur_limit": [3, 5], "p": 0.1}]
_MASKS = ("change", "first_mask", "second_mask", "building", "damage")


def normalise(image: np.ndarray) -> Tensor:
    """An image [H, W, 3] uint8 -> [3, H, W] float32 by ImageNet's mean and standard deviation."""
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (scaled - mean) / std


class ChangeTransform:
    """What `ChangePairs` applies.

    What is drawn follows Python's `random`, as in `AlbumentationsTransform`.

    Args:
        crop: side of the square crop in pixels, smaller images padded (masks with 255, which does not count); None
            for whole images.
        augment: flip, turn and change the light at random; else crop in the middle.
        light: change the light, of each date on its own.
    """

    def __init__(self, crop: int | None, augment: bool, light: bool = True):
        specs: list = []
        if crop:
            specs += [
                {"type": "PadIfNeeded", "min_height": crop, "min_width": crop, "border_mode": 0, "fill_mask": 255},
                {"type": "RandomCrop" if augment else "CenterCrop", "height": crop, "width": crop}]
        specs += _GEOMETRY if augment else []
        targets = {"second": "image", **dict.fromkeys(_MASKS, "mask")}
        self.geometry = build_compose(build_transforms(specs, "change pairs"), targets=targets) if specs else None
        self.light = build_compose(build_transforms(_LIGHT, "change pairs")) if augment and light else None

    def __call__(
        self, first: np.ndarray, second: np.ndarray, masks: Mapping[str, np.ndarray]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        # masks of a date share no name with its image; OpenCV, below, knows no int64
        data = {"image": first, "second": second, **{
            f"{k}_mask" if k in ("first", "second") else k: v.astype(np.uint8) for k, v in masks.items()}}
        if self.geometry is not None:
            data = draw(self.geometry, **data)
        images = [data.pop("image"), data.pop("second")]
        if self.light is not None:
            images = [draw(self.light, image=image)["image"] for image in images]
        found = {k.removesuffix("_mask"): torch.from_numpy(v.astype(np.int64)) for k, v in data.items()}
        return normalise(images[0]), normalise(images[1]), found
