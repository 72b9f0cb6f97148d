"""Hierarchical scans: several resolutions in one sequence.

An operator's direction visits a token once.  Orders that come back to tokens walk copies of the map, stacked in the
natural order: token ``p`` of copy ``c`` is ``c * H * W + p``.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .order import ScanOrder
from .registry import register_path, register_scan, scan_length, scan_order

__all__: list[str] = []


def _register_sequence(name: str, *parts: str) -> None:
    """Register ``name``: the walks ``parts`` one after another, the state carried on, each over its copy of the map."""

    @register_scan(
        name, 1, length=lambda height, width: sum(scan_length(part, height, width) for part in parts),
        copies=len(parts))
    def build(height: int, width: int, directions: int) -> Tensor:
        return ScanOrder.concatenate([scan_order(part, (height, width)) for part in parts]).index


# MSVMamba's scans of the map at half resolution; the full map is scanned by "h" with parameters of its own.
# Shi et al., "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", arXiv:2405.14174, section 3.3.
_register_sequence("ms_half", "h_flip", "v", "v_flip")
# First within windows, then over the whole map with what the windows left in the state.
_register_sequence("window_then_global", "w7", "h")


@register_path("coarse_to_fine", four=True)
def _coarse_to_fine(height: int, width: int) -> Tensor:
    """Every 2^m-th token of every 2^m-th row, then the new ones among every 2^(m-1)-th, ..., each level by rows."""
    position = torch.arange(height * width)
    row, column = position // width, position % width
    both = row | column
    lowest = torch.where(both == 0, height * width, both & -both)  # the lowest bit set in either, the grid's spacing
    return lowest.neg().argsort(stable=True)
