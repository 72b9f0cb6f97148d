"""ChangeMamba's decoders, on channels-last maps at four resolutions.

Chen et al., arXiv:2404.03425, sections III-C and III-D. Inside, all maps have one width, 128 in the paper.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.layers import Conv2dNHWC, ConvNorm
from vmamba.models.vmamba import VMambaBlock

__all__ = ["ChangeDecoder", "SemanticDecoder", "resize"]

DROP_PATH = 0.1


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map bilinearly, ``[B, H, W, C] -> [B, *size, C]``."""
    return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


def scan_block(dim: int) -> VMambaBlock:
    """A block of the encoders of the paper: SS2D of twice the width with one state, then an MLP."""
    return VMambaBlock(dim, 4.0, DROP_PATH, {"ssm_ratio": 2.0})


def scan_projected(in_chans: int, dim: int) -> nn.Sequential:
    """Project a map to the decoder's width and scan it."""
    return nn.Sequential(Conv2dNHWC(in_chans, dim, 1), scan_block(dim))


class ResidualConv(nn.Module):
    """Two 3x3 convolutions with batch norms around a skip; ``[B, H, W, C]`` both ways."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, 3, act=nn.ReLU)
        self.conv2 = ConvNorm(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(self.conv1(x)))


class SpatioTemporalRelation(nn.Module):
    """Scan two dates of one resolution together in three arrangements, and fuse what comes out.

    Equations 3 to 8 of the paper. "Parallel" lays the dates on one another as channels, "cross" puts their columns in
    turn, "sequential" the second date to the right of the first. Of the cross-scan's four directions over those maps
    only two walk as the names say: along rows "cross" changes date at each token, but along columns at each column;
    along columns "sequential" goes date after date, but along rows row after row. As scans of a pair these are the
    orders ``bitemporal_cross`` and ``bitemporal_sequential``; here the maps are laid out, for the convolution inside.

    Args:
        in_chans: Channels C of a date.
        dim: Channels of the result.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.parallel = scan_projected(2 * in_chans, dim)
        self.cross = scan_projected(in_chans, dim)
        self.sequential = scan_projected(in_chans, dim)
        self.fuse = ConvNorm(5 * dim, dim, 1, bias=True, act=nn.ReLU)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps ``[B, H, W, C]`` -> ``[B, H, W, dim]``."""
        width = first.shape[2]
        parallel = self.parallel(torch.cat([first, second], dim=3))
        cross = self.cross(torch.stack([first, second], dim=3).flatten(2, 3))
        sequential = self.sequential(torch.cat([first, second], dim=2))
        return self.fuse(torch.cat([
            parallel, cross[:, :, ::2], cross[:, :, 1::2], sequential[:, :, :width], sequential[:, :, width:]], dim=3))


class ChangeDecoder(nn.Module):
    """What changed, from the maps of both dates, coarse to fine.

    Args:
        channels: Channels of the encoder's four maps, finest first.
        dim: Channels inside and of the result.
    """

    def __init__(self, channels: Sequence[int], dim: int = 128) -> None:
        super().__init__()
        self.relations = nn.ModuleList(SpatioTemporalRelation(c, dim) for c in channels)
        self.smooth = nn.ModuleList(ResidualConv(dim) for _ in channels[:-1])

    def forward(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, H_i, W_i, C_i]`` of either date, finest first -> ``[B, H_0, W_0, dim]``."""
        fused = [
            relation(p, q) for relation, p, q in zip(self.relations, first, second, strict=True)]
        x = fused.pop()
        for smooth in reversed(self.smooth):
            finer = fused.pop()
            x = smooth(resize(x, finer.shape[1:3]) + finer)
        return x


class SemanticDecoder(nn.Module):
    """What is there at one date, from its maps, coarse to fine.

    Args:
        channels: Channels of the encoder's four maps, finest first.
        dim: Channels inside and of the result.
    """

    def __init__(self, channels: Sequence[int], dim: int = 128) -> None:
        super().__init__()
        self.top = scan_projected(channels[-1], dim)
        self.lateral = nn.ModuleList(ConvNorm(c, dim, 1, bias=True, act=nn.ReLU) for c in channels[:-1])
        self.smooth = nn.ModuleList(ResidualConv(dim) for _ in channels[:-1])
        self.blocks = nn.ModuleList(scan_block(dim) for _ in channels[:-1])
        self.final = ResidualConv(dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, H_i, W_i, C_i]``, finest first -> ``[B, H_0, W_0, dim]``."""
        x = self.top(maps[-1])
        levels: Any = zip(maps[:-1], self.lateral, self.smooth, self.blocks, strict=True)
        for finer, lateral, smooth, block in reversed(list(levels)):
            finer = lateral(finer)
            x = block(smooth(resize(x, finer.shape[1:3]) + finer))
        return self.final(x)
