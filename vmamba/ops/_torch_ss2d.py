"""Plain torch path of ``ss2d_scan``, forward and backward.

A projection per token commutes with any order, so everything but the recurrence is computed in natural order.  With
one state per channel, rows and columns are walked as strided views and nothing is permuted at all; other orders and
larger states gather their sequences first.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import ScanOrder, scan_order, scan_routes

from . import _grouped
from ._shapes import compute_dtype, ss2d_output_dtype

TILE_ELEMENTS = 1 << 21
"""Elements of one [K, b, T, D * N] tensor that are worked on at once, so that a tile stays in the cache."""


class _Sequences(NamedTuple):
    """One tile of images as the grouped scan takes it; letters as in ``_grouped``."""

    u: Tensor  # [K or 1, b, T, D]
    factors: Tensor  # [K, b, T, R]
    B: Tensor  # [K, b, T, N]
    C: Tensor | None


class _Plan(NamedTuple):
    """What is the same for all tiles."""

    dt_weight: Tensor  # [K, R, D]
    dt_bias: Tensor | None  # [K, 1, D]
    A: Tensor  # [K, D, N]
    order: ScanOrder | None  # None: walked as views
    walk: _grouped.Walk | None
    dtype: torch.dtype


def _plan(
        x: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, order: str, height: int, width: int,
        index: Tensor | None,
) -> _Plan:
    dtype = compute_dtype(x)
    directions, _, states = A_log.shape
    walk, table = None, None
    if index is not None:
        table = ScanOrder("custom", (height, width), index, x.shape[1])
    else:
        routes = scan_routes(order, directions)
        if routes is not None and states == 1:
            walk = _grouped.Walk(routes, height, width)
        else:
            table = scan_order(order, (height, width), directions, x.device)
    bias = dt_bias.to(dtype).unsqueeze(1) if dt_bias is not None else None
    weight = dt_weight.to(dtype).transpose(1, 2)
    return _Plan(weight, bias, -torch.exp(A_log.to(dtype)), table, walk, dtype)


def _sequences(x: Tensor, proj: Tensor, plan: _Plan) -> _Sequences:
    rank, states = plan.dt_weight.shape[1], plan.A.shape[2]
    u = x.to(plan.dtype).unsqueeze(0)
    p = proj.permute(2, 0, 1, 3).to(plan.dtype)  # [K, b, L, P]
    if plan.order is not None:
        u = _gather(u.expand(p.shape[0], -1, -1, -1), plan.order.index)
        p = _gather(p, plan.order.index)
    C = p[..., rank + states:] if p.shape[-1] > rank + states else None
    return _Sequences(u, p[..., :rank], p[..., rank:rank + states], C)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [K, T] of ``x`` [K, b, L, C] along L, zeros for -1 -> [K, b, T, C]."""
    length = x.shape[2]
    out = torch.stack([x_k.index_select(1, i.clamp(min=0)) for x_k, i in zip(x, index, strict=True)])
    if index.shape[1] > length or bool((index < 0).any()):
        out.mul_((index >= 0).to(out.dtype)[:, None, :, None])
    return out


def _delta(factors: Tensor, plan: _Plan) -> Tensor:
    """Step sizes before the softplus, [K, b, T, D]."""
    flat = factors.flatten(1, 2)
    raw = torch.bmm(flat, plan.dt_weight) if plan.dt_bias is None else torch.baddbmm(
        plan.dt_bias, flat, plan.dt_weight)
    return raw.unflatten(1, factors.shape[1:3])


def _tiles(batch: int, per_image: int) -> list[slice]:
    size = max(1, TILE_ELEMENTS // per_image)
    return [slice(start, start + size) for start in range(0, batch, size)]


def forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool,
) -> tuple[Tensor, Tensor]:
    """Returns ``(y, states)``; ``states`` are those before each block of steps, empty for N = 1."""
    plan = _plan(x, dt_weight, dt_bias, A_log, order, height, width, index)
    batch, length, channels = x.shape
    directions, _, states = A_log.shape
    steps = plan.order.length if plan.order is not None else length
    out_shape = (batch, length, channels) if merge else (batch, directions, length, channels)
    y = torch.empty(out_shape, dtype=ss2d_output_dtype(x), device=x.device)
    saved = x.new_empty((batch, directions, state_blocks(steps, states), channels, states), dtype=plan.dtype)
    skip = D_skip.to(plan.dtype) if D_skip is not None else None

    for tile in _tiles(batch, directions * steps * channels * states):
        seq = _sequences(x[tile], proj[tile], plan)
        delta = F.softplus(_delta(seq.factors, plan))
        if states == 1:
            y_k, _ = _grouped.forward_single(seq.u, delta, plan.A, seq.B, seq.C, None, plan.walk)
        else:
            assert seq.C is not None  # checked with the shapes: C may be omitted only for N = 1
            y_k, _, starts = _grouped.forward_blocked(seq.u, delta, plan.A, seq.B, seq.C, None)
            saved[tile] = starts.transpose(0, 1)
        y[tile] = _to_natural(y_k, x[tile], skip, plan, merge)
    return y, saved


def state_blocks(steps: int, states: int) -> int:
    """Number of block states that ``forward`` saves for a walk of ``steps`` steps."""
    return 0 if states == 1 else (steps + _grouped.BLOCK_STEPS - 1) // _grouped.BLOCK_STEPS


def _to_natural(y_k: Tensor, x: Tensor, skip: Tensor | None, plan: _Plan, merge: bool) -> Tensor:
    """Outputs of the walks [K, b, T, D] -> natural order, skip connection added, merged or not."""
    if plan.order is not None:
        y_k = _gather(y_k, plan.order.inverse)
    if skip is not None:
        skip = _visited_skip(skip, plan)
    if merge:
        y = y_k.sum(0)
        return y if skip is None else y.addcmul_(x.to(plan.dtype), skip.sum(0))
    if skip is not None:
        y_k = torch.addcmul(y_k, x.to(plan.dtype), skip.unsqueeze(1))
    return y_k.transpose(0, 1)


def _visited_skip(skip: Tensor, plan: _Plan) -> Tensor:
    """Skip weights [K, 1 or L, D], zero at tokens that a direction never visits."""
    skip = skip.unsqueeze(1)
    if plan.order is not None:
        unvisited = plan.order.inverse < 0
        if bool(unvisited.any()):
            skip = skip.masked_fill(unvisited.unsqueeze(-1), 0)
    return skip


def backward(
        dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
        D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        saved: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of (x, proj, dt_weight, dt_bias, A_log, D_skip); empty tensors for absent arguments."""
    plan = _plan(x, dt_weight, dt_bias, A_log, order, height, width, index)
    batch, length, channels = x.shape
    directions, _, states = A_log.shape
    steps = plan.order.length if plan.order is not None else length
    dx, dproj = x.new_empty(x.shape), proj.new_empty(proj.shape)
    dweight, dA = torch.zeros_like(plan.dt_weight), torch.zeros_like(plan.A)
    dbias, dskip = (torch.zeros(directions, channels, dtype=plan.dtype, device=x.device) for _ in range(2))

    for tile in _tiles(batch, directions * steps * channels * states):
        seq = _sequences(x[tile], proj[tile], plan)
        raw = _delta(seq.factors, plan)
        delta = F.softplus(raw)
        dy_ = dy[tile].to(plan.dtype)
        dy_k = dy_.unsqueeze(0) if merge else dy_.transpose(0, 1)
        dy_walk = dy_k if plan.order is None else _gather(dy_k.expand(directions, -1, -1, -1), plan.order.index)
        if states == 1:
            grads = _grouped.backward_single(dy_walk, None, seq.u, delta, plan.A, seq.B, seq.C, None, plan.walk)
        else:
            assert seq.C is not None
            grads = _grouped.backward_blocked(
                dy_walk, None, seq.u, delta, plan.A, seq.B, seq.C, saved[tile].transpose(0, 1))
        draw = grads.delta.mul_(raw.sigmoid_())

        dA += grads.A
        dbias += draw.sum((1, 2))
        dweight += torch.bmm(seq.factors.flatten(1, 2).transpose(1, 2), draw.flatten(1, 2))
        dfactors = torch.bmm(draw.flatten(1, 2), plan.dt_weight.transpose(1, 2)).unflatten(1, draw.shape[1:3])
        parts = [dfactors, grads.B] + ([grads.C] if seq.C is not None else [])
        du, dp = grads.u, torch.cat(parts, dim=-1)
        if plan.order is not None:
            du, dp = _gather(du, plan.order.inverse), _gather(dp, plan.order.inverse)
        dx_tile = du.sum(0)
        if D_skip is not None:
            _skip_gradients_(dx_tile, dskip, dy_k, x[tile].to(plan.dtype), D_skip.to(plan.dtype), plan)
        dx[tile] = dx_tile
        dproj[tile] = dp.permute(1, 2, 0, 3)

    absent = x.new_empty(0)
    return (
        dx, dproj, dweight.transpose(1, 2).to(dt_weight.dtype).contiguous(),
        dbias.to(dt_bias.dtype) if dt_bias is not None else absent,
        dA.mul_(plan.A).to(A_log.dtype),  # A = -exp(A_log), so dA/dA_log = A
        dskip.to(D_skip.dtype) if D_skip is not None else absent,
    )


def _skip_gradients_(dx: Tensor, dskip: Tensor, dy_k: Tensor, x: Tensor, skip: Tensor, plan: _Plan) -> None:
    """Add the skip connection's part: ``y_k += D_k x`` wherever direction k visits."""
    visited = _visited_skip(torch.ones_like(skip), plan)  # [K, 1 or L, D]
    dyx = dy_k * x
    dskip += (dyx * visited.unsqueeze(1)).sum((1, 2)) if visited.shape[1] > 1 else dyx.sum((1, 2))
    skip = visited * skip.unsqueeze(1)
    if dy_k.shape[0] == 1:
        dx.addcmul_(dy_k[0], skip.sum(0))
    else:
        dx += (dy_k * skip.unsqueeze(1)).sum(0)
