"""MambaBCD, MambaSCD and MambaBDA: binary change, semantic change, and damage of buildings."""
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import Format, LayerNorm
from torch import Tensor, nn

from vmamba.layers import Conv2dNHWC

from .decoders import ChangeDecoder, SemanticDecoder, resize

__all__ = ["ENCODERS", "STRIDES", "ChangeModel", "MambaBCD", "MambaBDA", "MambaSCD", "create_change_model"]

STRIDES = (4, 8, 16, 32)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("vmamba_tiny_s2l5", {"depths": (2, 2, 4, 2), "drop_path_rate": 0.2}),
    "small": ("vmamba_small_s2l15", {"drop_path_rate": 0.3}),
    "base": ("vmamba_base_s2l15", {"drop_path_rate": 0.6}),
}
"""The published encoders: a model of timm and its arguments. The tiny one has a block less than its namesake."""
NORM_EPS = 1e-5


class SiameseEncoder(nn.Module):
    """One backbone for both dates, with a LayerNorm on each map.

    Args:
        backbone: A timm model built with ``features_only``, with maps at strides 4, 8, 16 and 32.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels: list[int] = backbone.feature_info.channels()
        self.channels_last = getattr(backbone, "output_fmt", Format.NCHW) == Format.NHWC
        self.norms = nn.ModuleList(LayerNorm(c, eps=NORM_EPS) for c in self.channels)

    def forward(self, first: Tensor, second: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Two images ``[B, C, H, W]`` -> maps ``[B, H_i, W_i, C_i]`` of either, finest first.

        Raises:
            ValueError: The images have different shapes.
        """
        if first.shape != second.shape:
            raise ValueError(f"the two dates must have one shape, got {list(first.shape)} and {list(second.shape)}")
        batch = first.shape[0]
        maps = self.backbone(torch.cat([first, second]))
        nhwc = maps if self.channels_last else [y.permute(0, 2, 3, 1) for y in maps]
        normed = [norm(y) for norm, y in zip(self.norms, nhwc, strict=True)]
        return [y[:batch] for y in normed], [y[batch:] for y in normed]


class ChangeModel(nn.Module):
    """Base of the systems.

    Args:
        encoder: Maps of both dates.
        dim: Channels of the decoders.

    Attributes:
        task: Its name, a key of :data:`TASKS`.
        classes: Outputs and their numbers of classes.
    """

    task = ""
    classes: Mapping[str, int] = {}

    def __init__(self, encoder: SiameseEncoder, dim: int = 128) -> None:
        super().__init__()
        self.encoder = encoder

    @staticmethod
    def upsample(logits: Tensor, image: Tensor) -> Tensor:
        """Logits ``[B, h, w, classes]`` at the size of the image, ``[B, classes, H, W]``."""
        return resize(logits, image.shape[2:]).permute(0, 3, 1, 2)


class MambaBCD(ChangeModel):
    """Binary change detection: ``change`` [B, 2, H, W], 0 unchanged and 1 changed."""

    task = "bcd"

    def __init__(self, encoder: SiameseEncoder, dim: int = 128) -> None:
        super().__init__(encoder)
        self.classes = {"change": 2}
        self.change_decoder = ChangeDecoder(encoder.channels, dim)
        self.change_head = Conv2dNHWC(dim, 2, 1)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Two images ``[B, C, H, W]`` -> logits by output."""
        maps = self.encoder(first, second)
        return {"change": self.upsample(self.change_head(self.change_decoder(*maps)), first)}


class MambaSCD(ChangeModel):
    """Semantic change detection: ``change`` [B, 2, H, W], and ``first`` and ``second`` [B, classes, H, W].

    Of the land cover's classes 0 is "no label" and never learnt.

    Args:
        encoder: Maps of both dates.
        num_classes: Classes of land cover, with "no label"; 7 for SECOND.
        dim: Channels of the decoders.
    """

    task = "scd"

    def __init__(self, encoder: SiameseEncoder, num_classes: int = 7, dim: int = 128) -> None:
        super().__init__(encoder)
        self.classes = {"change": 2, "first": num_classes, "second": num_classes}
        self.change_decoder = ChangeDecoder(encoder.channels, dim)
        self.first_decoder = SemanticDecoder(encoder.channels, dim)
        self.second_decoder = SemanticDecoder(encoder.channels, dim)
        self.change_head = Conv2dNHWC(dim, 2, 1)
        self.semantic_head = Conv2dNHWC(dim, num_classes, 1)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Two images ``[B, C, H, W]`` -> logits by output."""
        before, after = self.encoder(first, second)
        found = {
            "change": self.change_head(self.change_decoder(before, after)),
            "first": self.semantic_head(self.first_decoder(before)),
            "second": self.semantic_head(self.second_decoder(after))}
        return {name: self.upsample(logits, first) for name, logits in found.items()}


class MambaBDA(ChangeModel):
    """Damage of buildings: ``building`` [B, 2, H, W] from the first date, and ``damage`` [B, classes, H, W].

    Args:
        encoder: Maps of both dates.
        num_classes: Classes of damage: 0 background, then from none to the worst; 5 for xBD.
        dim: Channels of the decoders.
    """

    task = "bda"

    def __init__(self, encoder: SiameseEncoder, num_classes: int = 5, dim: int = 128) -> None:
        super().__init__(encoder)
        self.classes = {"building": 2, "damage": num_classes}
        self.damage_decoder = ChangeDecoder(encoder.channels, dim)
        self.building_decoder = SemanticDecoder(encoder.channels, dim)
        self.damage_head = Conv2dNHWC(dim, num_classes, 1)
        self.building_head = Conv2dNHWC(dim, 2, 1)

    def forward(self, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """Two images ``[B, C, H, W]`` -> logits by output."""
        before, after = self.encoder(first, second)
        return {
            "building": self.upsample(self.building_head(self.building_decoder(before)), first),
            "damage": self.upsample(self.damage_head(self.damage_decoder(before, after)), first)}


TASKS: dict[str, type[ChangeModel]] = {cls.task: cls for cls in (MambaBCD, MambaSCD, MambaBDA)}


def _features(name: str, pretrained: bool, arguments: dict[str, Any]) -> Any:
    """The model ``name`` with its maps at the four strides.

    Raises:
        ValueError: It has not such maps.
    """
    backbone: Any = timm.create_model(name, pretrained=pretrained, features_only=True, **arguments)
    strides = backbone.feature_info.reduction()
    wanted = tuple(i for i, stride in zip(backbone.feature_info.out_indices, strides, strict=True) if stride in STRIDES)
    if sorted(set(strides) & set(STRIDES)) != list(STRIDES) or len(wanted) != len(STRIDES):
        raise ValueError(
            f"{name} has maps at strides {', '.join(map(str, strides))}, but change detection needs a backbone with "
            f"one at each of {', '.join(map(str, STRIDES))}, such as vmamba_tiny or resnet18")
    if len(wanted) == len(strides):
        return backbone
    return timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=wanted, **arguments)


def create_change_model(
        task: str, encoder: str = "tiny", *, num_classes: int | None = None, dim: int = 128, pretrained: bool = False,
        **encoder_args: Any,
) -> ChangeModel:
    """A system with fresh decoders.

    Args:
        task: "bcd" (:class:`MambaBCD`), "scd" (:class:`MambaSCD`) or "bda" (:class:`MambaBDA`).
        encoder: "tiny", "small" or "base", the published ones, or any model of timm with maps at strides 4 to 32.
        num_classes: Classes of land cover or damage; None for the published number.
        dim: Channels of the decoders.
        pretrained: Load published weights of the encoder.
        encoder_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: Unknown task, an encoder without such maps, or classes for a task that has two.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")
    if task == "bcd" and num_classes not in (None, 2):
        raise ValueError(f"the task 'bcd' has 2 classes, got num_classes={num_classes}")
    name, arguments = ENCODERS.get(encoder, (encoder, {}))
    shorter = "depths" in arguments
    backbone = _features(name, pretrained and not shorter, {**arguments, **encoder_args})
    if pretrained and shorter:  # as the authors do: weights of blocks that it has not are left out
        whole = {key: value for key, value in arguments.items() if key != "depths"}
        weights = _features(name, True, {**whole, **encoder_args}).state_dict()
        backbone.load_state_dict({key: weights[key] for key in backbone.state_dict()})
    features = SiameseEncoder(backbone)
    given = {"num_classes": num_classes} if num_classes is not None and task != "bcd" else {}
    return TASKS[task](features, dim=dim, **given)
