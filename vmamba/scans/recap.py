"""The order of a query image's windows, before each of which the support image is walked again.

Xu et al., "Hybrid Mamba for Few-Shot Segmentation" (HMNet), arXiv:2409.19613, section 3.3 (support recapped Mamba).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .order import ScanOrder
from .registry import scan_order

__all__ = ["recap_order"]


def recap_order(size: Sequence[int], ratio: int) -> ScanOrder:
    """Four directions of ``[S, W_1, S, W_2, ...]``: windows W of the query, and the whole support S before each.

    Direction 0 takes windows row by row, tokens inside of them and support likewise; direction 1 column by column;
    directions 2 and 3 are these with windows, tokens inside and support backwards, the support still before each
    window. So that tokens are not visited twice, the support is there ``ratio ** 2`` times; copy c is walked before
    the c-th window of each direction.

    Args:
        size: Grid size ``(H, W)`` of the query in tokens.
        ratio: Windows along each side; the support's grid is ``(H / ratio, W / ratio)``.

    Returns:
        Order over ``2 H W`` tokens: the query's, then the copies of the support one after the other.

    Raises:
        ValueError: ``size`` is not divisible by ``ratio``.
    """
    height, width = size
    if height % ratio or width % ratio:
        raise ValueError(f"size must be divisible by the ratio {ratio}, got {height} x {width}")
    rows, columns = height // ratio, width // ratio
    by_row = scan_order("h", (rows, columns)).over_windows((height, width)).index
    by_column = scan_order("h", (columns, rows)).over_windows((width, height)).transpose().index
    support = scan_order("h+v", (rows, columns)).index
    copies = height * width + rows * columns * torch.arange(ratio ** 2, dtype=torch.int32).view(-1, 1)
    walks = []
    for reverse in (False, True):
        for query, place in zip(torch.cat([by_row, by_column]), support, strict=True):
            query, place = (query.flip(0), place.flip(0)) if reverse else (query, place)
            walks.append(torch.cat([copies + place, query.view(ratio ** 2, -1)], dim=1).flatten())
    return ScanOrder(f"recap {ratio}", (height, width), torch.stack(walks), 2 * height * width)
