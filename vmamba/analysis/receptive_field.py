"""The effective receptive field: which pixels of the image the middle of a feature map depends on, and how much.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016,
arXiv:1701.04128, section 2.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .stages import stage_names

__all__ = ["ReceptiveField", "effective_receptive_field"]

TWO_DEVIATIONS = 1 - 0.9545     # of a Gaussian's height: Luo et al. count what is above that


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel counts for the middle of a stage's map.

    Attributes:
        stage: Name of the stage.
        size: Rows and columns of its map.
        weights: Absolute derivative of the middle pixel, summed over its channels, by each pixel of the image, summed
            over colours and averaged over images: [H, W] float64.
    """

    stage: str
    size: tuple[int, int]
    weights: Tensor

    @property
    def diameter(self) -> float:
        """Square root of the number of pixels with more than 4.55 % of the greatest weight (Luo et al.)."""
        return float((self.weights > TWO_DEVIATIONS * self.weights.max()).sum()) ** 0.5

    def area(self, share: float) -> float:
        """Part of the image, 0 to 1, that the smallest rectangle of its shape around the middle takes.

        Ding et al., "Scaling Up Your Kernels to 31x31", arXiv:2203.06717, section 5 (high-contribution area ratio).

        Args:
            share: Part of all weight that lies in the rectangle, 0 to 1.
        """
        rows, columns = ((torch.arange(n) - (length // 2 + 0.5) / length * n + 0.5).abs() / n
                         for n, length in zip(self.weights.shape, self.size, strict=True))
        away = torch.maximum(rows.view(-1, 1), columns.view(1, -1)).flatten()
        order = away.argsort()
        held = self.weights.flatten()[order].cumsum(0)
        last = int((held < share * held[-1]).sum())
        return float((away <= away[order[min(last, len(order) - 1)]]).double().mean())


def effective_receptive_field(
        model: Any, batches: Iterable[Tensor], stages: Sequence[int] | None = None) -> list[ReceptiveField]:
    """Receptive fields of the middle of stages' maps.

    Args:
        model: Anything with timm's ``forward_intermediates``, in evaluation mode.
        batches: Images [B, C, H, W], all of one size, at least one batch.
        stages: Indices of stages (of blocks, in models without); None for those of :func:`default_stages`.

    Raises:
        UserError: The model gives no maps, or has no such stage.
    """
    names = stage_names(model, stages)
    totals: dict[int, Tensor] = {}
    sizes: dict[int, tuple[int, int]] = {}
    count = 0
    for images in batches:
        images = images.detach().clone().requires_grad_()
        maps = model.forward_intermediates(images, indices=list(names), intermediates_only=True)
        count += len(images)
        for index, features in zip(names, maps, strict=True):
            h, w = sizes[index] = (features.shape[-2], features.shape[-1])
            middle = features[:, :, h // 2, w // 2].sum()
            gradient, = torch.autograd.grad(middle, images, retain_graph=True)
            totals[index] = totals.get(index, 0) + gradient.double().abs().sum((0, 1)).cpu()
    return [ReceptiveField(name, sizes[i], totals[i] / count) for i, name in names.items()]
