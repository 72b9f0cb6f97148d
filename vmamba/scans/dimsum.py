"""The eight-direction scans of DiMSUM: rows and columns, snakes, or JPEG's zigzag, from each corner.

Phung et al., "DiMSUM: Diffusion Mamba", arXiv:2411.04168.  Paths 2c and 2c + 1 start at the corner c of (left upper,
right upper, left lower, right lower), row-wise and column-wise.  DiMSUM takes one path a layer, layer i path i mod 8.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .order import ScanOrder
from .registry import register_scan, scan_order

__all__: list[str] = []


def _from_corners(name: str, path: str) -> None:
    """Register ``name``: the path ``path`` and its transpose, from each corner."""

    @register_scan(name, 8)
    def build(height: int, width: int, directions: int) -> Tensor:
        left_upper = ScanOrder.stack([scan_order(p, (height, width)) for p in (path, f"{path}_t")])
        left_lower = left_upper.mirror(0)
        corners = (left_upper, left_upper.mirror(1), left_lower, left_lower.mirror(1))
        return torch.cat([order.index for order in corners])


_from_corners("dimsum_sweep8", "h")
_from_corners("dimsum_snake8", "snake_h")
_from_corners("dimsum_jpeg8", "zigzag")
