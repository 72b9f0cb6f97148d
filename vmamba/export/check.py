"""Whether an exported file answers like the model it was made of."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..errors import require

__all__ = ["TOLERANCE", "Difference", "differences"]

TOLERANCE = 1e-4
"""Largest difference of a logit, as a part of the largest logit where that is above 1."""
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")  # of scikit-image


@dataclass
class Difference:
    """How a file answers to one batch.

    Attributes:
        images: "random" or "photographs".
        shape: of the batch, (B, C, H, W).
        logit: largest absolute logit of the model.
        absolute: largest absolute difference from it.
    """

    images: str
    shape: tuple[int, ...]
    logit: float
    absolute: float

    @property
    def passes(self) -> bool:
        """Whether the difference is within :data:`TOLERANCE`; one that is not a number is not."""
        return self.absolute <= TOLERANCE * max(1.0, self.logit)

    def __str__(self) -> str:
        return (f"{'x'.join(map(str, self.shape))} {self.images}: differs by {self.absolute:.1e}, "
                f"largest logit {self.logit:.3g}")


def differences(
        model: nn.Module, exported: Callable[[Tensor], Tensor], data_config: Mapping[str, Any], fixed_size: bool,
) -> Iterator[Difference]:
    """Compare on random images and on photographs, at several sizes where the file takes them.

    Args:
        model: The model in evaluation mode.
        exported: What was read back from the file; images to logits, on the device of the model.
        data_config: Preprocessing, as ``timm.data.create_transform`` takes it.
        fixed_size: Whether the file takes images of one size only.

    Raises:
        UserError: scikit-image, which has the photographs, is not installed.
    """
    device = next(model.parameters()).device
    _, height, width = data_config["input_size"]
    sizes = [(height, width)]
    if not fixed_size:  # one not square and odd, one larger
        sizes += [(height * 3 // 4 | 1, height * 9 // 8 | 1), (height * 5 // 4, height)]
    generator = torch.Generator().manual_seed(0)
    for i, (height, width) in enumerate(sizes):
        config = {**data_config, "input_size": (data_config["input_size"][0], height, width)}
        random = torch.randn(3 - i, *config["input_size"], generator=generator)
        for name, images in (("random", random), ("photographs", photographs(config))):
            with torch.inference_mode():
                expected = model(images.to(device)).float().cpu()
            found = exported(images.to(device)).float().cpu()
            yield Difference(
                name, tuple(images.shape), float(expected.abs().max()), float((expected - found).abs().max()))


def photographs(data_config: Mapping[str, Any]) -> Tensor:
    """Photographs that come with scikit-image, as a model with this preprocessing gets them, [3, C, H, W]."""
    data = require("skimage.data", extra="export")
    channels = data_config["input_size"][0]
    gray = channels == 1
    transform = create_transform(**{**data_config, **({} if channels in (1, 3) else {
        "input_size": (3, *data_config["input_size"][1:]), "mean": (0.5,) * 3, "std": (0.5,) * 3})})
    images = [Image.fromarray(getattr(data, name)()).convert("L" if gray else "RGB") for name in PHOTOGRAPHS]
    batch = torch.stack([transform(image) for image in images])
    return batch if channels in (1, 3) else batch[:, torch.arange(channels) % 3]
