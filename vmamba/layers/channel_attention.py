"""Attention over channels: a gate per channel from the mean token."""
from typing import Any

import torch
from torch import Tensor, nn

from .norm import LayerNorm

__all__ = ["ChannelAttention", "SqueezeExcite"]


class ChannelAttention(nn.Module):
    """Scale channels by a sigmoid of the mean token, ``[..., L, C] -> [..., L, C]``.

    The channel branch of "BiAttn": Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan",
    arXiv:2403.09338, section 4.2. Leading dimensions, such as images and directions, are independent.

    Args:
        dim: Channels C.
        reduction: Channels per hidden unit.
        norm_eps: Epsilon of the LayerNorm before the mean.
    """

    def __init__(
            self, dim: int, reduction: int = 8, norm_eps: float = 1e-5, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = LayerNorm(dim, eps=norm_eps, **dd)
        self.reduce = nn.Linear(dim, dim // reduction, **dd)
        self.act = nn.GELU()
        self.expand = nn.Linear(dim // reduction, dim, **dd)

    def weights(self, x: Tensor) -> Tensor:
        """The gate alone, in (0, 1): ``[..., L, C] -> [..., 1, C]``."""
        return self.expand(self.act(self.reduce(self.norm(x).mean(dim=-2, keepdim=True)))).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x)


class SqueezeExcite(nn.Module):
    """Scale channels by a sigmoid of the mean position, ``[B, H, W, C] -> [B, H, W, C]``.

    Hu et al., "Squeeze-and-Excitation Networks", arXiv:1709.01507, on channels-last maps.

    Args:
        dim: Channels C.
        reduction: Channels per hidden unit.
        bias: Whether the two linear layers have biases.
    """

    def __init__(
            self, dim: int, reduction: int = 8, bias: bool = True, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.reduce = nn.Linear(dim, dim // reduction, bias=bias, **dd)
        self.act = nn.ReLU()
        self.expand = nn.Linear(dim // reduction, dim, bias=bias, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.act(self.reduce(x.mean(dim=(1, 2), keepdim=True)))).sigmoid()
