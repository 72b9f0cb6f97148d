"""How well masked patches of a split are told, and a sheet of pictures that shows it."""
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.task import evaluation_sample_limit
from torch import Tensor

from vmamba.errors import UserError, require
from vmamba.train.run_directory import atomic_path

from .masks import draw_visible, from_patches, masked_patch_loss, normalised_patches, to_patches, visible_at
from .model import MaskedImageModel

__all__ = ["Reconstruction", "draw_sheet", "evaluate_reconstruction"]

SHEET_IMAGES = 8


@dataclass
class Reconstruction:
    """Results on one split.

    Attributes:
        loss: mean squared error over the masked patches, in units of each patch's own variance.
        sheet: for some of the images a triple [3, C, H, W]: the image, what of it was visible, and the image with its
            masked patches as predicted; normalised as the network's input.
    """

    loss: float
    sheet: list[Tensor] = field(default_factory=list)

    @property
    def score(self) -> float:
        """What tells the best epoch: more is better."""
        return -self.loss

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Returns the scalar results by name."""
        return {f"{prefix}loss": self.loss}

    def __str__(self) -> str:
        return f"val loss {self.loss:.4f}"


@torch.inference_mode()
def evaluate_reconstruction(
    model: MaskedImageModel,
    loader: Any,
    mask_ratio: float,
    device: torch.device,
    autocast: AbstractContextManager,
    seed: int = 0,
    channels_last: bool = False,
    progress: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Reconstruction:
    """Runs `model` over `loader`, with the same masks whenever it is called.

    Args:
        model: encoder and decoder.
        loader: yields (images, anything). Under `torchrun` every image of the split counts once.
        mask_ratio: part of the patches that is masked, 0 to 1.
        device: where the model is.
        autocast: context the forward pass runs in.
        seed: of the masks.
        channels_last: memory format of the input.
        progress: show a bar if stderr is a terminal.
        between: called before each batch; what it raises ends the evaluation.

    Raises:
        UserError: torchmetrics is missing, or the split is empty.
    """
    mean = require("torchmetrics").MeanMetric().to(device)
    generator = torch.Generator().manual_seed(seed)
    left = evaluation_sample_limit(loader)
    # evenly spread: splits are often sorted by class
    step = max(1, len(loader.dataset) // SHEET_IMAGES) if hasattr(loader.dataset, "__len__") else 1
    sheet: list[Tensor] = []
    seen = 0
    model.eval()
    bar = require("tqdm").tqdm(loader, desc="validation", unit="batch", leave=False, disable=None if progress else True)
    for images, _ in bar:
        between()
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        visible = draw_visible(len(images), model.grid(images), mask_ratio, generator).to(device)
        with autocast:
            predicted = model(images, visible)
        # the sampler pads each process's share by repeating images at its end: they have run, but do not count
        losses = masked_patch_loss(predicted, images, visible)[:left]
        left = None if left is None else left - len(losses)
        mean.update(losses)
        for index in range(-seen % step, len(losses), step):
            if len(sheet) < SHEET_IMAGES:
                sheet.append(_triple(predicted[index], images[index], visible[index]))
        seen += len(losses)
    if seen == 0:
        raise UserError("the validation split has no images")
    return Reconstruction(float(mean.compute()), sheet)


def _triple(predicted: Tensor, image: Tensor, visible: Tensor) -> Tensor:
    """Image, what of it is visible, and with its masked patches as predicted: [C, H, W] each -> [3, C, H, W].

    The prediction is in units of each patch's deviation from its mean; both are taken from the image.
    """
    size = image.shape[1] // visible.shape[0]
    _, mean, deviation = normalised_patches(image[None], size)
    told = from_patches(to_patches(predicted[None].float(), size) * deviation + mean, size)[0]
    shown = visible_at(visible[None], (image.shape[1], image.shape[2]))
    return torch.stack([image, torch.where(shown, image, float("nan")), torch.where(shown, image, told)]).float().cpu()


def draw_sheet(path: Path, sheet: list[Tensor], mean: list[float], std: list[float]) -> None:
    """Draws the triples of a `Reconstruction` below each other, a column an image.

    Args:
        path: PNG file.
        sheet: [3, C, H, W] each, normalised.
        mean: channel means they were normalised with.
        std: channel standard deviations.
    """
    figure = require("matplotlib.figure").Figure(
        figsize=(1.2 * len(sheet) + 1.0, 3.9), layout="constrained", dpi=120)
    axes = figure.subplots(3, len(sheet), squeeze=False)
    scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (std, mean))
    for column, triple in enumerate(sheet):
        for row, image in enumerate(triple):
            pixels = (image * scale + shift).clamp(0, 1)
            pixels = torch.where(pixels.isnan(), 0.5, pixels).permute(1, 2, 0)      # masked: grey
            axes[row][column].imshow(pixels.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes[row][column].set(xticks=[], yticks=[])
    for row, name in enumerate(("image", "visible", "predicted")):
        axes[row][0].set_ylabel(name)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
