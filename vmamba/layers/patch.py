"""Stems and downsampling of hierarchical scan models, on channels-last maps [B, H, W, C]."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

__all__ = ["ConvDownsample", "ConvStem", "PatchMerging", "PatchStem"]


def _conv_nhwc(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve a channels-last map; the permuted view is what torch calls channels_last, so nothing is copied."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PatchStem(nn.Module):
    """One 4x4 convolution of stride 4 and a norm: images ``[B, 3, H, W] -> [B, H // 4, W // 4, C]``."""

    def __init__(
            self, in_chans: int, dim: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 4, stride=4, **dd)
        self.norm = LayerNorm(dim, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with a norm: ``[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]``."""

    def __init__(
            self, in_chans: int, dim: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = LayerNorm(dim // 2, eps=norm_eps, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = LayerNorm(dim, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = self.act(self.norm1(x.permute(0, 2, 3, 1)))
        return self.norm2(_conv_nhwc(self.conv2, x))


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours, norm, project: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C_out]``.

    Odd sizes are padded with zeros at the bottom and right.  Liu et al., "Swin Transformer", arXiv:2103.14030.
    """

    def __init__(
            self, dim: int, dim_out: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = LayerNorm(4 * dim, eps=norm_eps, **dd)
        self.reduction = nn.Linear(4 * dim, dim_out, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        return self.reduction(self.norm(x))


class ConvDownsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C_out]``."""

    def __init__(
            self, dim: int, dim_out: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = LayerNorm(dim_out, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_conv_nhwc(self.conv, x))
