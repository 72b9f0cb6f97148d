"""Continuous scans: each step goes to a neighbour.

Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", arXiv:2403.17695, section 3.3.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .order import ScanOrder
from .registry import register_alias, register_path

__all__ = ["step_moves"]


@register_path("snake_h")
def _snake_rows(height: int, width: int) -> Tensor:
    """Row by row, the odd ones from right to left."""
    grid = torch.arange(height * width).view(height, width)
    odd = torch.arange(height).unsqueeze(1) % 2 == 1
    return torch.where(odd, grid.flip(1), grid).flatten()


register_alias("snake_v", "snake_h_t")
register_alias("snake4", "snake_h+snake_h_flip+snake_v+snake_v_flip")


def step_moves(order: ScanOrder) -> Tensor:
    """PlainMamba's kinds of step: 0 for the first one, then 1 right, 2 left, 3 up, 4 down.

    Args:
        order: Order on an H x W grid whose every step goes to a neighbour, such as ``snake4``.

    Returns:
        ``[K, T]`` int64: the move by which direction ``k`` arrives at its step ``t``.

    Raises:
        ValueError: Some step does not go to a neighbour.
    """
    index, width = order.index.long(), order.size[-1]
    row, column = (index // width).diff(dim=1), (index % width).diff(dim=1)
    traced = isinstance(order.length, torch.SymInt)  # has no values to look at
    if not traced and (order.has_padding or ((row.abs() + column.abs()) != 1).any()):
        raise ValueError(f"the order {order.name!r} has steps that do not go to a neighbour")
    moves = torch.where(column > 0, 1, torch.where(column < 0, 2, torch.where(row < 0, 3, 4)))
    return torch.cat([torch.zeros_like(index[:, :1]), moves], dim=1)
