"""Stems and downsampling of hierarchical scan models, on channels-last maps [B, H, W, C]."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import Conv2dNHWC, ConvNorm
from .norm import LayerNorm

__all__ = [
    "ConvDownsample", "ConvStem", "InvertedDownsample", "PatchEmbed", "PatchMerging", "PatchStem", "ResidualStem",
]


class PatchStem(nn.Module):
    """One 4x4 convolution of stride 4 and a norm: images ``[B, 3, H, W] -> [B, H // 4, W // 4, C]``."""

    def __init__(
            self, in_chans: int, dim: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = Conv2dNHWC(in_chans, dim, 4, stride=4, **dd)
        self.norm = LayerNorm(dim, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))


class PatchEmbed(nn.Module):
    """Patches that may overlap, by one convolution: images ``[B, 3, H, W] -> [B, rows, columns, C]``.

    What is left at the bottom and right of an image that the patches do not fill is not looked at.

    Args:
        in_chans: Input image channels.
        dim: Channels C.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next.
    """

    def __init__(
            self, in_chans: int, dim: int, patch_size: int = 16, stride: int = 16, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.proj = Conv2dNHWC(in_chans, dim, patch_size, stride=stride, device=device, dtype=dtype)

    @torch.jit.ignore
    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, each with a norm: ``[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]``."""

    def __init__(
            self, in_chans: int, dim: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = Conv2dNHWC(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = LayerNorm(dim // 2, eps=norm_eps, **dd)
        self.act = nn.GELU()
        self.conv2 = Conv2dNHWC(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = LayerNorm(dim, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        x = self.act(self.norm1(x))
        return self.norm2(self.conv2(x))


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
        B, H, W, C = x.shape
        rows, columns = (H + 1) // 2, (W + 1) // 2
        # with symbolic sizes torch 2.11 traces the gradient of this with other strides than it has (training compiled
        # with dynamic=True fails); torch.cat with zeros traces, and cannot be exported for dynamic sizes
        x = F.pad(x, (0, 0, 0, 2 * columns - W, 0, 2 * rows - H))
        # neighbours in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column)
        x = x.reshape(B, rows, 2, columns, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, rows, columns, 4 * C)
        return self.reduction(self.norm(x))


class ConvDownsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C_out]``."""

    def __init__(
            self, dim: int, dim_out: int, norm_eps: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = Conv2dNHWC(dim, dim_out, 3, stride=2, padding=1, **dd)
        self.norm = LayerNorm(dim_out, eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualStem(nn.Module):
    """Convolutions of stride 2 around a residual pair: ``[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]``.

    Han et al., "Demystify Mamba in Vision: A Linear Attention Perspective", arXiv:2405.16605 (MLLA).
    """

    def __init__(self, in_chans: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNorm(in_chans, half, 3, stride=2, act=nn.ReLU, **dd)
        self.conv2 = nn.Sequential(ConvNorm(half, half, 3, act=nn.ReLU, **dd), ConvNorm(half, half, 3, **dd))
        self.conv3 = nn.Sequential(
            ConvNorm(half, 4 * dim, 3, stride=2, act=nn.ReLU, **dd), ConvNorm(4 * dim, dim, 1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))
        return self.conv3(x + self.conv2(x))


class InvertedDownsample(nn.Module):
    """Widen, depthwise convolution of stride 2, narrow: ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C_out]``.

    The downsampling of MLLA, arXiv:2405.16605, after the inverted residual of MobileNetV2, arXiv:1801.04381.

    Args:
        dim: Channels C.
        dim_out: Channels C_out.
        pad_odd: Bring maps of odd size to an even one by zeros at the bottom and right, before anything else.
    """

    def __init__(
            self, dim: int, dim_out: int, pad_odd: bool = False, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = 4 * dim_out
        self.pad_odd = pad_odd
        self.expand = Conv2dNHWC(dim, hidden, 1, **dd)
        self.act = nn.ReLU()
        self.depthwise = Conv2dNHWC(hidden, hidden, 3, stride=2, padding=1, groups=hidden, **dd)
        self.project = ConvNorm(hidden, dim_out, 1, bias=True, **dd)

    def forward(self, x: Tensor) -> Tensor:
        if self.pad_odd:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return self.project(self.act(self.depthwise(self.act(self.expand(x)))))
