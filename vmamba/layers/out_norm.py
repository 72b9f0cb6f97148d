"""What VMamba puts between the merged scan and the output projection: LayerNorm, or one of its ablations."""
from typing import Any

import torch
from torch import Tensor, nn

from .conv import Conv2dNHWC
from .norm import LayerNorm

__all__ = ["OUT_NORMS", "create_out_norm"]


class PositionSoftmax(nn.Module):
    """Softmax over all positions of a map, per channel, ``[B, H, W, D] -> [B, H, W, D]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).softmax(dim=1).view(x.shape)


OUT_NORMS = ("layernorm", "none", "sigmoid", "softmax", "dwconv3", "cnorm")
"""LayerNorm (every released model); nothing; sigmoid; softmax over positions; 3x3 depthwise; LayerNorm then that."""


def create_out_norm(kind: str, dim: int, eps: float, device: Any = None, dtype: torch.dtype | None = None) -> nn.Module:
    """Build the output norm ``kind`` for ``dim`` channels.

    Raises:
        ValueError: ``kind`` is not one of :data:`OUT_NORMS`.
    """
    dd = {"device": device, "dtype": dtype}
    depthwise = {"kernel_size": 3, "padding": 1, "groups": dim, "bias": False, **dd}
    if kind == "layernorm":
        return LayerNorm(dim, eps=eps, **dd)
    if kind == "none":
        return nn.Identity()
    if kind == "sigmoid":
        return nn.Sigmoid()
    if kind == "softmax":
        return PositionSoftmax()
    if kind == "dwconv3":
        return Conv2dNHWC(dim, dim, **depthwise)
    if kind == "cnorm":
        return nn.Sequential(LayerNorm(dim, eps=eps, **dd), Conv2dNHWC(dim, dim, **depthwise))
    raise ValueError(f"out_norm is {kind!r}, but needs one of {', '.join(map(repr, OUT_NORMS))}")
