"""Class activation maps: where on the image a stage finds what speaks for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
arXiv:1610.02391, equations 1 and 2.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.errors import UserError

from .stages import stage_names

__all__ = ["ClassActivation", "class_activation", "normalise_maps", "resize_maps"]


@dataclass(frozen=True)
class ClassActivation:
    """Grad-CAM of some stages for one class of each image.

    Attributes:
        classes: Indices of the classes [B].
        probabilities: The model's softmax probabilities of them [B].
        maps: Of each stage by its name, [B, h, w], not negative.
    """

    classes: Tensor
    probabilities: Tensor
    maps: dict[str, Tensor]


def class_activation(
        model: Any, images: Tensor, classes: Tensor | None = None, stages: Sequence[int] | None = None,
) -> ClassActivation:
    """Grad-CAM at the outputs of stages: ``relu(sum_c mean_hw(d score / d A_c) A_c)``.

    Args:
        model: A timm classifier with ``forward_intermediates``, in evaluation mode.
        images: [B, C, H, W].
        classes: Indices of the classes asked about [B]; None for the most probable ones.
        stages: Indices of stages (of blocks, in models without); None for those of :func:`default_stages` and the last
            but one block, without those on which the score does not depend.

    Raises:
        UserError: The model gives no maps or has no such stage, or the score does not depend on the map of one asked
            for, as after the last block of a model that classifies by a class token.
    """
    names = stage_names(model, stages)
    if stages is None and len(model.feature_info) > len(names):     # of many blocks, the last that all scores need
        names = stage_names(model, [*names, -2])
    # a graph even of a model whose parameters are frozen
    final, maps, outputs = _forward(model, images.detach().clone().requires_grad_(), names)
    logits = model.forward_head(final)
    classes = logits.argmax(1) if classes is None else classes.to(logits.device)
    scores = logits.gather(1, classes.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(scores, outputs, allow_unused=True, retain_graph=True)
    found = {}
    for name, output, features, gradient in zip(names.values(), outputs, maps, gradients, strict=True):
        weights = None if gradient is None else _in_layout(features, output, gradient).mean((2, 3), keepdim=True)
        if weights is not None and weights.any():
            found[name] = (weights * features).sum(1).relu().detach()
        elif stages is not None:
            raise UserError(f"the score of a class does not depend on the map after {name}: the model classifies by "
                            "what is not part of it; ask for an earlier stage")
    return ClassActivation(
        classes, logits.float().softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1).detach(), found)


def _forward(model: Any, images: Tensor, names: dict[int, str]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Final features, the maps [B, C, h, w] of stages, and the outputs of the modules that they are made of."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            # of several outputs, timm's stages give the map first
            outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook

    # a family that adds a shortcut around its stages calls their blocks only: a sum does not change the gradient
    modules = dict(model.named_modules())
    watched = [name for stage in names.values() for name in (stage, f"{stage}.blocks") if name in modules]
    hooks = [modules[name].register_forward_hook(keep(name)) for name in watched]
    try:
        final, maps = model.forward_intermediates(images, indices=list(names))
    finally:
        for hook in hooks:
            hook.remove()
    return final, maps, [outputs[name if name in outputs else f"{name}.blocks"] for name in names.values()]


def _in_layout(features: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """``gradient`` by a module's output in the layout of ``features`` [B, C, h, w], which is made of that output.

    Families lay their outputs out differently: channels first or last, as tokens, with others between them. That
    ``features = P output`` for a choice and permutation P is all there is to know: autograd gives ``P^T v`` for any v,
    and the derivative of its product with the gradient by v is ``P gradient``.
    """
    v = torch.zeros_like(features, requires_grad=True)
    transposed, = torch.autograd.grad(features, output, v, create_graph=True)
    moved, = torch.autograd.grad(transposed, v, gradient)
    return moved


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] bilinearly at another size."""
    return F.interpolate(maps.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def normalise_maps(maps: Tensor) -> Tensor:
    """Each of the maps [..., h, w] from 0 to 1; one that is the same everywhere becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
