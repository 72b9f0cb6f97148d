"""Tokens in the order of a walk and back, ``torch.ops.vmamba.reorder``, and the moves by which a walk arrives.

For what a scan cannot read through its order: small per-token tensors that belong to steps instead of tokens, and what
a convolution along the walk needs. Activations of full width are better left where they are, see ``ss2d_scan``.
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vmamba.scans import ScanOrder, default_directions, scan_length, scan_order, scan_tokens, step_moves

from ._library import LIBRARY

__all__ = ["reorder"]

LIBRARY.define("reorder(Tensor x, str order, SymInt height, SymInt width, bool walk) -> Tensor")
LIBRARY.define("arrivals(Tensor like, str order, SymInt height, SymInt width) -> Tensor")


def reorder(x: Tensor, order: str, height: int, width: int, walk: bool) -> Tensor:
    """Rows of tokens into the order of K walks, or rows of steps back to their tokens.

    Args:
        x: [B, S, C], the same for all directions, or [B, S, K, C]; S tokens in natural order with ``walk``, else S
            steps.
        order: Name of a scan order, see :func:`vmamba.scans.list_scans`.
        height: Rows of the grid.
        width: Columns of the grid.
        walk: From tokens to steps; else from steps to tokens.

    Returns:
        [B, S', K, C]: the other of steps and tokens. Padding slots and tokens that a direction never visits are zero.

    Raises:
        ValueError: x has another number of tokens (or steps) or directions than the order.
    """
    return torch.ops.vmamba.reorder(x, order, height, width, walk)


@lru_cache(maxsize=256)
def _rows(order: ScanOrder, walk: bool, own: bool) -> tuple[Tensor, Tensor | None]:
    """Rows to take, [S' * K], and [S', K, 1] which of them are none."""
    with torch.inference_mode(False):  # cached, so it may be saved for a later backward
        index = (order.index if walk else order.inverse).t().long()
        absent = (index < 0).unsqueeze(-1) if order.has_padding or not order.covers else None
        rows = index.clamp(min=0)
        if own:
            rows = rows * order.num_directions + torch.arange(order.num_directions, device=index.device)
        return rows.flatten(), absent


def _check(x: Tensor, order: str, height: int, width: int, walk: bool) -> None:
    tokens = scan_tokens(order, height, width) if walk else scan_length(order, height, width)
    if x.ndim not in (3, 4) or x.shape[1] != tokens or (x.ndim == 4 and x.shape[2] != default_directions(order)):
        raise ValueError(
            f"x has shape {list(x.shape)}, but needs [B, S, C] or [B, S, K, C] with S = {tokens} and "
            f"K = {default_directions(order)} for the order {order!r} on {height} x {width}")


@torch.library.impl(LIBRARY, "reorder", "CompositeExplicitAutograd")
def _forward(x: Tensor, order: str, height: int, width: int, walk: bool) -> Tensor:
    _check(x, order, height, width, walk)
    table = scan_order(order, (height, width), device=x.device)
    rows, absent = _rows(table, walk, x.ndim == 4)
    source = x.flatten(1, 2) if x.ndim == 4 else x
    y = source.index_select(1, rows).view(x.shape[0], -1, table.num_directions, x.shape[-1])
    return y if absent is None else y.masked_fill_(absent, 0)


@torch.library.register_fake("vmamba::reorder", lib=LIBRARY)
def _fake(x: Tensor, order: str, height: int, width: int, walk: bool) -> Tensor:
    _check(x, order, height, width, walk)
    count = scan_length(order, height, width) if walk else scan_tokens(order, height, width)
    return x.new_empty((x.shape[0], count, default_directions(order), x.shape[-1]))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, ctx.order, ctx.height, ctx.width, ctx.walk = inputs
    ctx.shared = x.ndim == 3


def _autograd(ctx: Any, dy: Tensor) -> tuple:
    # a direction visits a token at most once, so the transpose is the way back
    dx = torch.ops.vmamba.reorder(dy, ctx.order, ctx.height, ctx.width, not ctx.walk)
    return (dx.sum(2) if ctx.shared else dx), None, None, None, None


torch.library.register_autograd("vmamba::reorder", _autograd, setup_context=_setup_context, lib=LIBRARY)


@lru_cache(maxsize=64)
def _arrivals(order: ScanOrder) -> Tensor:
    return step_moves(order).gather(1, order.inverse.long()).t().contiguous()


@torch.library.impl(LIBRARY, "arrivals", "CompositeExplicitAutograd")
def _arrivals_forward(like: Tensor, order: str, height: int, width: int) -> Tensor:
    """[L, K] int64, on the device of ``like``: the move by which each direction arrives at each token (step_moves)."""
    # a copy: compiled graphs may write into what an operator returns
    return _arrivals(scan_order(order, (height, width), device=like.device)).clone()


@torch.library.register_fake("vmamba::arrivals", lib=LIBRARY)
def _arrivals_fake(like: Tensor, order: str, height: int, width: int) -> Tensor:
    return like.new_empty((scan_tokens(order, height, width), default_directions(order)), dtype=torch.int64)
