"""Labelled images with a mask of the object on each, transformed alike."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, create_transform
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..errors import UserError
from .datasets import UNREADABLE, UnreadableImageError

__all__ = ["MaskedImages", "augmented_view", "evaluation_view"]

View = Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor]]


def evaluation_view(data_config: dict[str, Any]) -> View:
    """What evaluation does to an image, and the same to its mask: PIL images -> [C, H, W] normalised, [H, W] of 0 or 1.

    Args:
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode.
    """
    of_image = create_transform(is_training=False, **data_config)
    height, width = data_config["input_size"][1:]
    of_mask = create_transform(is_training=False, **{
        **data_config, "input_size": (1, height, width), "mean": (0.0,), "std": (1.0,), "interpolation": "nearest"})

    def view(image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        return of_image(image), (of_mask(mask)[0] > 0).float()

    return view


def augmented_view(data_config: dict[str, Any], scale: tuple[float, float], hflip: float) -> View:
    """Random crops, resized, and mirror images, of an image and its mask alike; as :func:`evaluation_view` otherwise.

    Args:
        data_config: As there.
        scale: Least and greatest part of the image that a crop takes.
        hflip: Probability of the mirror image.
    """
    height, width = data_config["input_size"][1:]
    geometry = v2.Compose([
        v2.RandomResizedCrop((height, width), scale=scale, antialias=True), v2.RandomHorizontalFlip(hflip)])
    normalise = v2.Compose([
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(data_config["mean"]), list(data_config["std"]))])

    def view(image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        pixels, object_ = geometry(tv_tensors.Image(image), tv_tensors.Mask(mask))
        return normalise(pixels.as_subclass(Tensor)), (object_.as_subclass(Tensor)[0] > 0).float()

    return view


class MaskedImages(Dataset):
    """Triples of an image [C, H, W], its class and its mask [H, W], which is 1 on the object.

    Args:
        dataset: Images and classes, without a transform. Where there are masks, an image folder.
        view: Makes tensors of an image and its mask.
        masks: Folder with a PNG file for each image, at the same place below the split and of the same size, 0 beside
            the object; None where nobody says where objects are: the mask is 1 everywhere.

    Raises:
        UserError: The dataset is no image folder, or a mask is missing.
    """

    def __init__(self, dataset: Any, view: View, masks: str | Path | None = None):
        self.dataset, self.view = dataset, view
        self.masks: list[Path] = []
        if masks is None:
            return
        if not isinstance(dataset, ImageDataset):
            raise UserError("masks belong to the images of a folder: give --data-dir")
        self.masks = [
            (Path(masks) / dataset.filename(i, absolute=False)).with_suffix(".png") for i in range(len(dataset))]
        missing = [path for path in self.masks if not path.is_file()]
        if missing:
            raise UserError(f"{len(missing)} of {len(self.masks)} masks are missing, such as {missing[0]}")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        image, label = self.dataset[index]
        mask = self._mask(index, image.size)
        pixels, object_ = self.view(image, mask)
        return pixels, label, object_

    def _mask(self, index: int, size: tuple[int, int]) -> Image.Image:
        if not self.masks:
            return Image.new("L", size, 255)
        path = self.masks[index]
        try:
            with Image.open(path) as file:
                mask = file.convert("L")
        except UNREADABLE as error:
            raise UnreadableImageError(f"cannot read mask {path}: {error}") from None
        if mask.size != size:
            raise UnreadableImageError(f"mask {path} is {mask.size[0]}x{mask.size[1]}, but its image "
                                       f"{size[0]}x{size[1]}")
        return mask
