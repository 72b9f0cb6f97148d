"""Atrous (skipping) scans: every direction visits its own quarter of the tokens.

Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", arXiv:2403.09977, section 3.2.
Together the four directions visit each token once, so the sum over directions puts the quarters back in their places.
Steps other than 2, which the published code has an argument for, do not work there and are not offered here.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .order import PAD
from .registry import register_scan

__all__: list[str] = []


def _quarter(height: int, width: int) -> int:
    return -(-height // 2) * -(-width // 2)


@register_scan("atrous", 4, length=_quarter)
def _atrous(height: int, width: int, directions: int) -> Tensor:
    """Even rows by rows at even and at odd columns, odd rows by columns likewise; padded to even sides."""
    grid = torch.arange(height * width, dtype=torch.int32).view(height, width)
    grid = F.pad(grid, (0, width % 2, 0, height % 2), value=PAD)
    quarters = (grid[::2, ::2], grid[1::2, ::2].t(), grid[::2, 1::2], grid[1::2, 1::2].t())
    return torch.stack([quarter.flatten() for quarter in quarters])
