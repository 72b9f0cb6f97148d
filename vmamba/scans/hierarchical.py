"""Hierarchical scans: several resolutions in one sequence.

An operator's direction visits a token once.  Orders that come back to tokens walk copies of the map, stacked in the
natural order: token ``p`` of copy ``c`` is ``c * H * W + p``.
"""
from __future__ import annotations

from torch import Tensor

from .order import ScanOrder
from .registry import register_scan, scan_order

__all__: list[str] = []


def _one_after_another(names: tuple[str, ...], height: int, width: int) -> Tensor:
    return ScanOrder.concatenate([scan_order(name, (height, width)) for name in names]).index


@register_scan("ms_half", 1, length=lambda height, width: 3 * height * width, copies=3)
def _ms_half(height: int, width: int, directions: int) -> Tensor:
    """Rows backwards, columns, columns backwards, one after the other, the state carried on.

    MSVMamba's scans of the map at half resolution; the full map is scanned by ``h`` with parameters of its own.
    Shi et al., "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", arXiv:2405.14174, section 3.3.
    """
    return _one_after_another(("h_flip", "v", "v_flip"), height, width)
