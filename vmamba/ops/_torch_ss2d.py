"""Plain torch path of ``ss2d_scan``, forward and backward.

A projection per token commutes with any order.  So each direction's sequence is gathered from x and from the rows of
the projection, directions run through the grouped scan together, and its outputs are gathered back.  The work is cut
into tiles of several images, or of one image and some of its directions, that fit the cache and share a few buffers.

Tensors of walks are ``[b, k, T, C]`` (b images and k directions of a tile, T steps); letters as in ``reference``.
"""
from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.scans import ScanOrder, scan_order

from . import _grouped
from ._shapes import compute_dtype, ss2d_output_dtype
from ._workspace import workspace

TILE_ELEMENTS = 3 << 18
"""Elements of one [b, k, T, D * N] tensor that are worked on at once (or one direction's, if those are more)."""


class _Tables(NamedTuple):
    """Where the rows of one order come from and go to; -1 stands for a row of zeros."""

    walk: Tensor  # [K, T]: row of x, of [b, L, D]
    walk_projection: Tensor  # [K, T]: row of the projection, of [b, L * K, P]
    natural: Tensor  # [K, L]: row of the walks, of [b, K * T, D]
    padded: bool  # whether a walk has padding slots
    partial: bool  # whether a walk leaves tokens out


def _tables(order: ScanOrder) -> _Tables:
    index, inverse = order.index, order.inverse
    directions, steps = index.shape
    k = torch.arange(directions, dtype=torch.int32, device=index.device).unsqueeze(1)
    return _Tables(
        index, torch.where(index < 0, -1, index * directions + k),
        torch.where(inverse < 0, -1, inverse + k * steps), order.has_padding, not order.covers)


@lru_cache(maxsize=64)
def _registered_tables(order: ScanOrder) -> _Tables:
    """Tables of an order that is itself cached by its name and size."""
    with torch.inference_mode(False):
        return _tables(order)


class _Plan:
    """One call of the operator: order, parameters in the compute dtype, tiles and working memory."""

    def __init__(
            self, x: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
            order: str, height: int, width: int, index: Tensor | None,
    ) -> None:
        self.dtype = compute_dtype(x)
        self.batch, self.length, self.channels = x.shape[0], x.shape[1], x.shape[-1]
        self.directions, _, self.states = A_log.shape
        if index is None:
            self.order = scan_order(order, (height, width), self.directions, x.device)
            self.tables = _registered_tables(self.order)
        else:
            self.order = ScanOrder("custom", (height, width), index, self.length)
            self.tables = _tables(self.order)
        # The bias rides along as one more row of the matrix, against a column of ones beside the delta factors.
        bias = dt_bias if dt_bias is not None else torch.zeros_like(dt_weight[..., 0])
        self.weight = torch.cat([dt_weight, bias.unsqueeze(-1)], dim=-1).to(self.dtype).transpose(1, 2)  # [K, R + 1, D]
        self.A = -torch.exp(A_log.to(self.dtype))
        self.skip = D_skip.to(self.dtype).unsqueeze(1) if D_skip is not None else None  # [K, 1, D]
        self.visited = (  # [K, L, 1]
            (self.tables.natural >= 0).to(self.dtype).unsqueeze(-1) if self.tables.partial else None)

    def image_tiles(self) -> list[slice]:
        """Images that are worked on together."""
        size = max(1, TILE_ELEMENTS // (self.directions * self.order.length * self.channels * self.states))
        return [slice(start, start + size) for start in range(0, self.batch, size)]

    def direction_tiles(self) -> list[slice]:
        """Directions that are worked on together, groups of equal size."""
        most = max(1, TILE_ELEMENTS // (self.order.length * self.channels * self.states))
        size = -(-self.directions // -(-self.directions // most))
        return [slice(start, start + size) for start in range(0, self.directions, size)]

    def buffers(self, count: int, images: int, directions: int) -> list[Tensor]:
        """Scratch memory for ``count`` tensors [images, directions, T, D]."""
        shape = (images, directions, self.order.length, self.channels)
        return workspace(count, shape, self.dtype, self.A.device)

    def to_walk(self, x: Tensor, k: slice, out: Tensor | None = None) -> Tensor:
        """``[b, L, C]``, the same for all directions, or ``[b, L, K, C]`` -> ``[b, k, T, C]``."""
        if x.ndim == 4:
            return self.to_walk_each(x, k, out)
        return _take(x, self.tables.walk[k], self.tables.padded, out)

    def to_walk_each(self, x: Tensor, k: slice, out: Tensor | None = None) -> Tensor:
        """``[b, L, K, C]`` -> ``[b, k, T, C]``."""
        return _take(x.flatten(1, 2), self.tables.walk_projection[k], self.tables.padded, out)

    def to_natural(self, x: Tensor, k: slice, out: Tensor | None = None) -> Tensor:
        """``[b, k, T, C] -> [b, k, L, C]``; zeros at tokens that a direction never visits."""
        natural = self.tables.natural[k]
        if k.start:  # rows count from the first direction of the tile
            natural = torch.where(natural < 0, natural, natural - k.start * x.shape[2])
        return _take(x.flatten(1, 2), natural, self.tables.partial, out)

    def split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of the projection ``[b, k, T, P]`` -> delta factors beside a 1, B and C (None where left out)."""
        rank = self.weight.shape[1] - 1
        factors = torch.cat([p[..., :rank], torch.ones_like(p[..., :1])], dim=-1)
        C = p[..., rank + self.states:] if p.shape[-1] > rank + self.states else None
        return factors, p[..., rank:rank + self.states], C


def _take(x: Tensor, index: Tensor, absent: bool, out: Tensor | None = None) -> Tensor:
    """Rows ``index`` [k, T] of ``x`` [b, L, C] -> [b, k, T, C], in ``out`` if given and of that size.

    ``absent`` says whether some entries are -1, for zeros.
    """
    shape = (x.shape[0], *index.shape, x.shape[2])
    if out is None or out.shape != shape:
        out = x.new_empty(shape)
    torch.index_select(x, 1, (index.clamp(min=0) if absent else index).flatten(), out=out.flatten(1, 2))
    return out.masked_fill_((index < 0).unsqueeze(-1), 0) if absent else out


def forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool, out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns ``(y, states)``; ``states`` are those before each block of steps, empty for N = 1."""
    plan = _Plan(x, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    shape = (plan.batch, plan.length, plan.channels)
    y = torch.empty(
        shape if merge else (shape[0], plan.directions, *shape[1:]), dtype=out_dtype or ss2d_output_dtype(x),
        device=x.device)
    blocks = _grouped.state_blocks(plan.order.length, plan.states)
    saved = plan.A.new_empty((plan.batch, plan.directions, blocks, plan.states, plan.channels))
    skip = plan.skip if plan.skip is None or plan.visited is None else plan.skip * plan.visited  # [K, 1 or L, D]

    for tile in plan.image_tiles():
        x_, proj_ = x[tile].to(plan.dtype), proj[tile].to(plan.dtype)
        each = _directions_first(x_)
        total = _skip_total(each, skip) if skip is not None else torch.zeros_like(each[:, 0])
        for k in plan.direction_tiles():
            p = plan.to_walk_each(proj_, k)
            u, delta, *buffers = plan.buffers(2 + _grouped.BUFFERS_FORWARD, *p.shape[:2])
            plan.to_walk(x_, k, out=u)
            factors, B_, C_ = plan.split(p)
            _softplus_(torch.matmul(factors, plan.weight[k], out=delta))
            if plan.states == 1:
                y_k = _grouped.states_single(u, delta, plan.A[k], B_, buffers=buffers)
                y_k = y_k if C_ is None else y_k.mul_(C_)
            else:
                assert C_ is not None  # the shape check lets C be left out only for N = 1
                y_k, _, saved[tile, k] = _grouped.forward_blocked(u, delta, plan.A[k], B_, C_, None)
            y_k = plan.to_natural(y_k, k, out=delta)
            if merge:
                total.add_(y_k.sum(1))
            else:
                y[tile, k] = y_k if skip is None else y_k.addcmul_(each[:, k] if x.ndim == 4 else each, skip[k])
        if merge:
            y[tile] = total
    return y, saved


def _directions_first(x: Tensor) -> Tensor:
    """``[b, L, D]`` or ``[b, L, K, D]`` as a view ``[b, 1 or K, L, D]``."""
    return x.unsqueeze(1) if x.ndim == 3 else x.transpose(1, 2)


def _skip_total(each: Tensor, skip: Tensor) -> Tensor:
    """Sum of ``D_k x_k`` over directions: ``[b, 1 or K, L, D]`` and ``[K, 1 or L, D] -> [b, L, D]``."""
    return each[:, 0] * skip.sum(0) if each.shape[1] == 1 else (each * skip).sum(1)


def _softplus_(raw: Tensor) -> Tensor:
    return torch.ops.aten.softplus.out(raw, 1, 20, out=raw)


def backward(
        dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
        D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        saved: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of (x, proj, dt_weight, dt_bias, A_log, D_skip)."""
    plan = _Plan(x, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    dx, dproj = x.new_empty(x.shape), proj.new_empty(proj.shape)
    dweight, dA = torch.zeros_like(plan.weight), torch.zeros_like(plan.A)
    dskip = torch.zeros_like(plan.A[..., 0])

    for tile in plan.image_tiles():
        x_, dy_, proj_ = (t[tile].to(plan.dtype) for t in (x, dy, proj))
        dx_ = torch.zeros_like(x_)
        for k in plan.direction_tiles():
            p = plan.to_walk_each(proj_, k)
            u, dy_walk, raw, delta, *buffers = plan.buffers(4 + _grouped.BUFFERS_BACKWARD, *p.shape[:2])
            plan.to_walk(x_, k, out=u)
            if merge:
                plan.to_walk(dy_, k, out=dy_walk)
            else:
                plan.to_walk_each(dy_.transpose(1, 2), k, out=dy_walk)
            factors, B_, C_ = plan.split(p)
            _softplus_(delta.copy_(torch.matmul(factors, plan.weight[k], out=raw)))
            if plan.states == 1:
                grads = _grouped.backward_single(dy_walk, None, u, delta, plan.A[k], B_, C_, buffers=buffers)
            else:
                assert C_ is not None
                grads = _grouped.backward_blocked(dy_walk, None, u, delta, plan.A[k], B_, C_, saved[tile, k])
            draw = grads.delta.mul_(raw.sigmoid_())
            dweight[k] += torch.matmul(factors.transpose(2, 3), draw).sum(0)
            dfactors = torch.matmul(draw, plan.weight[k].transpose(1, 2))[..., :-1]
            dp = torch.cat([dfactors, grads.B, *([grads.C] if C_ is not None else [])], dim=-1)
            dproj[tile, :, k] = plan.to_natural(dp, k).transpose(1, 2).to(dproj.dtype)
            dA[k] += grads.A
            du = plan.to_natural(grads.u, k, out=delta)
            if x.ndim == 4:
                dx_[:, :, k] += du.transpose(1, 2)
            else:
                dx_ += du.sum(1)
        if plan.skip is not None:
            _skip_gradients_(
                plan, _directions_first(dx_), dskip, dy_.unsqueeze(1) if merge else dy_, _directions_first(x_))
        dx[tile] = dx_

    dweight, dbias = dweight[:, :-1].transpose(1, 2), dweight[:, -1]
    return dx, dproj, dweight, dbias, dA.mul_(plan.A), dskip  # A = -exp(A_log), so dA/dA_log = A


def _skip_gradients_(plan: _Plan, dx: Tensor, dskip: Tensor, dy: Tensor, x: Tensor) -> None:
    """Add the part of ``y_k += D_k x``; dy [b, 1 or K, L, D], x and dx [b, 1 or K, L, D]."""
    assert plan.skip is not None
    if plan.visited is not None:
        dy = dy * plan.visited
    dskip += (dy * x).sum((0, 2))
    if dx.shape[1] > 1:
        dx.addcmul_(dy, plan.skip)
    elif dy.shape[1] == 1:
        dx.addcmul_(dy, plan.skip.sum(0))
    else:
        dx += (dy * plan.skip).sum(1, keepdim=True)
