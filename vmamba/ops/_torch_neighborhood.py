"""Plain torch path of neighbourhood attention, and where its windows lie.

At the border a window is moved inwards, so that it keeps its size. Hassani et al., "Neighborhood Attention
Transformer", arXiv:2204.07143, and "Dilated Neighborhood Attention Transformer", arXiv:2209.15001.

One row of the windows is looked at after the other: all at once would take K * K copies of the map.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._shapes import compute_dtype


def dilation_of(extent: int, window: int, dilated: bool) -> int:
    """Interleaved classes into which an axis falls."""
    # extents may be symbols of a traced graph
    return torch.sym_max(1, torch.sym_min(extent // window, window)) if dilated else 1


def _classes(extent: int, window: int, dilated: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rank of each place in its class, the class, how many places that has, and the dilation."""
    place, dilation = torch.arange(extent, device=device), dilation_of(extent, window, dilated)
    group = place % dilation
    return place // dilation, group, (extent - 1 - group) // dilation + 1, dilation


def _start(rank: Tensor, length: Tensor, window: int) -> Tensor:
    return torch.minimum(rank - window // 2, length - window).clamp(min=0)


def windows(extent: int, window: int, dilated: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbours along one axis: their places, their distances and which of them there are, each [extent, window].

    The axis falls into as many interleaved classes as the dilation, ``min(extent // window, window)``; neighbours are
    of the same class. A class shorter than the window is taken whole, so maps may be smaller than the window.

    Args:
        extent: Positions along the axis.
        window: Neighbours of each, an odd number.
        dilated: Dilate; else neighbours are next to each other.
        device: Where the tables shall be.

    Returns:
        Places in 0 ... extent - 1; distances in steps of the dilation plus ``window - 1``, 0 ... 2 (window - 1); True
        for a neighbour.
    """
    rank, group, length, dilation = _classes(extent, window, dilated, device)
    neighbour = _start(rank, length, window).unsqueeze(1) + torch.arange(window, device=device)
    valid = neighbour < length.unsqueeze(1)
    distance = (neighbour - rank.unsqueeze(1) + window - 1).clamp(0, 2 * window - 2)
    return torch.where(valid, neighbour * dilation + group.unsqueeze(1), 0), distance, valid


def takers(extent: int, window: int, dilated: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of :func:`windows`: whose windows hold a place, as which of their neighbours, and which there are.

    Each is [extent, 2 * window - 1], which is how many windows can hold one place.
    """
    *classes, dilation = _classes(extent, window, dilated, device)
    rank, group, length = (t.unsqueeze(1) for t in classes)
    theirs = torch.where(rank < window, 0, rank - window // 2) + torch.arange(2 * window - 1, device=device)
    last = torch.where(rank >= length - window, length - 1, rank + window // 2)
    valid = theirs <= last
    slot = (rank - _start(theirs, length, window)).clamp(0, window - 1)
    return torch.where(valid, theirs * dilation + group, 0), slot, valid


def _neighbours(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Those of one row of each window: ``[B, H, W, n, D]``, [H] and [W, K] to ``[B, H, W, K, n, D]``."""
    return x.index_select(1, rows).index_select(2, columns.flatten()).unflatten(2, (-1, columns.shape[1]))


def _axes(x: Tensor, window: int, dilated: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (windows(x.shape[1], window, dilated, x.device), windows(x.shape[2], window, dilated, x.device))


def _products(x: Tensor, u: Tensor, window: int, dilated: bool) -> Tensor:
    """Of each position in x with its neighbours in u: ``[B, H, W, n, K, K]``."""
    rows, columns = _axes(x, window, dilated)
    parts = [(x.unsqueeze(3) * _neighbours(u, rows[0][:, i], columns[0])).sum(-1) for i in range(window)]
    return torch.stack(parts, dim=-1).permute(0, 1, 2, 4, 5, 3)


def _gather(weights: Tensor, v: Tensor, window: int, dilated: bool) -> Tensor:
    """Sums over windows of v, ``[B, H, W, n, D]``, by weights ``[B, H, W, n, K, K]``."""
    rows, columns = _axes(v, window, dilated)
    y = torch.zeros_like(v)
    for i in range(window):
        part = weights[..., i, :].transpose(3, 4).unsqueeze(-1)
        y += (part * _neighbours(v, rows[0][:, i], columns[0])).sum(3)
    return y


def _spread(weights: Tensor, x: Tensor, window: int, dilated: bool) -> Tensor:
    """The transpose of ``_gather``: every position gets of all windows that hold it."""
    places, slots, valid = takers(x.shape[1], window, dilated, x.device)
    columns, column_slots, column_valid = takers(x.shape[2], window, dilated, x.device)
    y = torch.zeros_like(x)
    for i in range(places.shape[1]):
        part = weights[:, places[:, i], :, :, slots[:, i]]  # [H, B, W, n, K]
        part = part.permute(2, 4, 1, 0, 3)[columns, column_slots]  # [W, M, B, H, n]
        part = part * (column_valid[:, :, None, None, None] & valid[:, i, None])
        y += (part.permute(2, 3, 0, 1, 4).unsqueeze(-1) * _neighbours(x, places[:, i], columns)).sum(3)
    return y


def weights_forward(q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool) -> Tensor:
    """``[B, H, W, n, K * K]`` in the dtype of q; arguments as of ``vmamba.ops.neighborhood_weights``."""
    dtype = compute_dtype(q)
    rows, columns = _axes(q, window, dilated)
    scores = _products(q.to(dtype), k.to(dtype), window, dilated)
    table = bias.to(dtype)[:, rows[1][:, None, :, None], columns[1][None, :, None, :]]  # [n, H, W, K, K]
    valid = rows[2][:, None, :, None] & columns[2][None, :, None, :]
    scores = (scores + table.permute(1, 2, 0, 3, 4)).masked_fill(~valid.unsqueeze(2), float("-inf"))
    return scores.flatten(4).softmax(dim=-1).to(q.dtype)


def weights_backward(
        dweights: Tensor, weights: Tensor, q: Tensor, k: Tensor, window: int, dilated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (q, k) and of the scores before the softmax ``[B, H, W, n, K * K]``, in the compute dtype."""
    dtype = compute_dtype(q)
    weights, dweights = weights.to(dtype), dweights.to(dtype)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
    parts = dscores.unflatten(4, (window, window))
    return _gather(parts, k.to(dtype), window, dilated), _spread(parts, q.to(dtype), window, dilated), dscores


def bias_gradient(dscores: Tensor, window: int, dilated: bool, dtype: torch.dtype) -> Tensor:
    """``[n, 2 K - 1, 2 K - 1]`` from the gradient to the scores, ``[B, H, W, n, K * K]``."""
    rows, columns = _axes(dscores, window, dilated)
    total = dscores.sum(0, dtype=dtype).unflatten(3, (window, window))  # [H, W, n, K, K]
    of_rows, of_columns = (
        (F.one_hot(distance, 2 * window - 1) * valid.unsqueeze(-1)).to(dtype) for _, distance, valid in (rows, columns))
    return torch.einsum("hwnij,hia,wjb->nab", total, of_rows, of_columns)


def apply_forward(weights: Tensor, v: Tensor, window: int, dilated: bool) -> Tensor:
    """``[B, H, W, n, D]`` in the dtype of v; arguments as of ``vmamba.ops.neighborhood_apply``."""
    dtype = compute_dtype(v)
    return _gather(weights.to(dtype).unflatten(4, (window, window)), v.to(dtype), window, dilated).to(v.dtype)


def apply_backward(dy: Tensor, weights: Tensor, v: Tensor, window: int, dilated: bool) -> tuple[Tensor, Tensor]:
    """Gradients of (weights, v), in the compute dtype."""
    dtype = compute_dtype(v)
    dy, weights, v = dy.to(dtype), weights.to(dtype), v.to(dtype)
    dweights = _products(dy, v, window, dilated).flatten(4)
    return dweights, _spread(weights.unflatten(4, (window, window)), dy, window, dilated)
