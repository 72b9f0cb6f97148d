"""Neighbourhood attention on maps: every position attends to a window around it, dilated or not.

Hassani et al., "Neighborhood Attention Transformer", arXiv:2204.07143, and "Dilated Neighborhood Attention
Transformer", arXiv:2209.15001. At the border a window is moved inwards, so that it keeps its size.
"""
import torch
from torch import Tensor

__all__ = ["neighborhood_apply", "neighborhood_weights", "neighborhood_windows"]


# Wrapped: tracing takes these functions whole. It finds them where they are called through this module's name.
@torch.fx.wrap
def neighborhood_windows(like: Tensor, extent: int, window: int, dilated: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours along one axis: their places, their distances and which of them there are, each [extent, window].

    The axis falls into as many interleaved classes as the dilation, ``min(extent // window, window)``; neighbours are
    of the same class. A class shorter than the window is taken whole, so maps may be smaller than the window.

    Args:
        like: A tensor on the wanted device.
        extent: Positions along the axis.
        window: Neighbours of each, an odd number.
        dilated: Dilate; else neighbours are next to each other.

    Returns:
        Places in 0 ... extent - 1; distances in steps of the dilation plus ``window - 1``, 0 ... 2 (window - 1); True
        for a neighbour.
    """
    place = torch.arange(extent, device=like.device)
    # a tensor, because a traced graph would fix the dilation of its example
    dilation = ((place[-1:] + 1) // window).clamp(min=1, max=window) if dilated else torch.ones_like(place[-1:])
    rank, group = place // dilation, place % dilation
    length = (place[-1:] - group) // dilation + 1  # of the class
    start = torch.minimum(rank - window // 2, length - window).clamp(min=0)
    neighbour = start.unsqueeze(1) + torch.arange(window, device=like.device)
    valid = neighbour < length.unsqueeze(1)
    distance = (neighbour - rank.unsqueeze(1) + window - 1).clamp(0, 2 * window - 2)
    return torch.where(valid, neighbour * dilation + group.unsqueeze(1), 0), distance, valid


def _neighbours(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Those of one row of each window: ``[B, n, H, W, D]``, [H] and [W, K] to ``[B, n, H, W, K, D]``."""
    return x.index_select(2, rows).index_select(3, columns.flatten()).unflatten(3, (-1, columns.shape[1]))


@torch.fx.wrap
def neighborhood_weights(q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool) -> Tensor:
    """Attention of every position to the K x K positions of its window, ``[B, n, H, W, K * K]``, which sum to 1.

    Args:
        q: Queries, scaled, [B, n, H, W, D] of n heads.
        k: Keys, shaped as q.
        bias: For each head and distance along both axes, [n, 2 K - 1, 2 K - 1].
        window: Side K of the windows, an odd number.
        dilated: Spread the windows over the map, see :func:`neighborhood_windows`.
    """
    rows, row_distance, row_valid = neighborhood_windows(q, q.shape[2], window, dilated)
    columns, column_distance, column_valid = neighborhood_windows(q, q.shape[3], window, dilated)
    # one row of the windows at a time: all at once would hold K * K copies of the keys
    parts = []
    for i in range(window):
        parts.append((q.unsqueeze(4) * _neighbours(k, rows[:, i], columns)).sum(-1))
    logits = torch.stack(parts, dim=4)  # [B, n, H, W, K, K]
    logits = logits + bias[:, row_distance[:, None, :, None], column_distance[None, :, None, :]]
    valid = row_valid[:, None, :, None] & column_valid[None, :, None, :]
    return logits.masked_fill(~valid, float("-inf")).flatten(4).softmax(dim=-1)


@torch.fx.wrap
def neighborhood_apply(weights: Tensor, v: Tensor, window: int, dilated: bool) -> Tensor:
    """Sums over windows of values [B, n, H, W, D], in that shape, weighed as by :func:`neighborhood_weights`."""
    rows, _, _ = neighborhood_windows(v, v.shape[2], window, dilated)
    columns, _, _ = neighborhood_windows(v, v.shape[3], window, dilated)
    parts = weights.unflatten(4, (window, window))
    y = torch.zeros_like(v)
    for i in range(window):
        y = y + (parts[:, :, :, :, i].unsqueeze(-1) * _neighbours(v, rows[:, i], columns)).sum(4)
    return y
