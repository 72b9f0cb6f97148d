"""Plain torch path of ``ss2d_scan``, forward and backward.

A projection per token commutes with any order, so all but the recurrence is computed in natural order.  With one state
per channel, rows and columns are walked as strided views and nothing is permuted; a reversed direction is the forward
one on the image turned by 180 degrees, so both share each vector operation (``_RouteLayout``).  Other orders and larger
states gather their sequences by the table of the order (``_TableLayout``).

Tensors of walks have the group axis first, ``[G, b, T, C]``; letters as in ``reference``.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import Route, ScanOrder, scan_order, scan_routes

from . import _grouped
from ._shapes import compute_dtype, ss2d_output_dtype

TILE_ELEMENTS = 1 << 20
"""Elements of one [G, b, T, D * N] tensor that are worked on at once, so that a tile stays in the cache."""


@dataclass(frozen=True)
class _Layout:
    """Directions that are walked together, and how their sequences relate to the natural order."""

    directions: list[int]

    def to_walk(self, x: Tensor) -> Tensor:
        """``[1 or G, b, L, C]`` in natural order -> ``[G, b, T, C]`` in the order of each direction's walk."""
        raise NotImplementedError

    def to_natural(self, x: Tensor) -> Tensor:
        """``[G, b, T, C] -> [G, b, L, C]``; zeros at tokens that a direction never visits."""
        raise NotImplementedError

    def steps(self, length: int) -> int:
        """Steps T of a walk over ``length`` tokens."""
        return length

    @property
    def walk(self) -> _grouped.Walk | None:
        """How the walked sequences lie in memory."""
        return None

    def visited(self, skip: Tensor) -> Tensor:
        """``[G, D] -> [G, 1 or L, D]``, zero at tokens that a direction never visits."""
        return skip.unsqueeze(1)


@dataclass(frozen=True)
class _RouteLayout(_Layout):
    """Rows or columns; the second of two directions is the reverse of the first."""

    grid: _grouped.Walk
    reversals: tuple[bool, ...]

    def to_walk(self, x: Tensor) -> Tensor:
        if not any(self.reversals):
            return x.expand(len(self.reversals), -1, -1, -1)
        parts = x.unbind(0) if x.shape[0] > 1 else x.unbind(0) * len(self.reversals)
        return torch.stack([p.flip(1) if back else p for p, back in zip(parts, self.reversals, strict=True)])

    def to_natural(self, x: Tensor) -> Tensor:
        return self.to_walk(x)  # turning by 180 degrees undoes itself

    @property
    def walk(self) -> _grouped.Walk:
        return self.grid


@dataclass(frozen=True)
class _TableLayout(_Layout):
    """Any order, by its table."""

    order: ScanOrder

    def to_walk(self, x: Tensor) -> Tensor:
        return _gather(x.expand(len(self.directions), -1, -1, -1), self.order.index)

    def to_natural(self, x: Tensor) -> Tensor:
        return _gather(x, self.order.inverse)

    def steps(self, length: int) -> int:
        return self.order.length

    def visited(self, skip: Tensor) -> Tensor:
        unvisited = self.order.inverse < 0
        skip = skip.unsqueeze(1)
        return skip.masked_fill(unvisited.unsqueeze(-1), 0) if bool(unvisited.any()) else skip


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [G, T] of ``x`` [G, b, L, C] along L, zeros for -1 -> [G, b, T, C]."""
    out = torch.stack([x_k.index_select(1, i.clamp(min=0)) for x_k, i in zip(x, index, strict=True)])
    absent = index < 0
    return out.masked_fill_(absent[:, None, :, None], 0) if bool(absent.any()) else out


def _layouts(
        order: str, height: int, width: int, index: Tensor | None, length: int, directions: int, states: int,
        device: torch.device,
) -> list[_Layout]:
    """Cut the K directions into groups that are walked together."""
    if index is not None:
        return [_TableLayout(list(range(directions)), ScanOrder("custom", (height, width), index, length))]
    routes = scan_routes(order, directions)
    if routes is None or states > 1:
        return [_TableLayout(list(range(directions)), scan_order(order, (height, width), directions, device))]
    groups: list[list[int]] = []
    for k, route in enumerate(routes):  # pair each direction with its reverse
        partner = next((g for g in groups if len(g) == 1 and routes[g[0]] == Route(route.column, not route.reverse)
                        and not routes[g[0]].reverse), None)
        if partner is not None:
            partner.append(k)
        else:
            groups.append([k])
    return [
        _RouteLayout(g, _grouped.Walk(height, width, routes[g[0]].column), tuple(routes[k].reverse for k in g))
        for g in groups
    ]


@dataclass(frozen=True)
class _Parameters:
    """Parameters of the directions of one layout, in the compute dtype."""

    dt_weight: Tensor  # [G, R, D]
    dt_bias: Tensor | None  # [G, 1, D]
    A: Tensor  # [G, D, N]
    skip: Tensor | None  # [G, D]

    @staticmethod
    def of(
            layout: _Layout, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
            dtype: torch.dtype) -> _Parameters:
        k = layout.directions
        return _Parameters(
            dt_weight[k].to(dtype).transpose(1, 2),
            dt_bias[k].to(dtype).unsqueeze(1) if dt_bias is not None else None,
            -torch.exp(A_log[k].to(dtype)),
            D_skip[k].to(dtype) if D_skip is not None else None)

    def split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of the projection ``[G, b, T, P]`` -> delta factors, B and C (None where left out)."""
        rank, states = self.dt_weight.shape[1], self.A.shape[2]
        C = p[..., rank + states:] if p.shape[-1] > rank + states else None
        return p[..., :rank], p[..., rank:rank + states], C

    def raw_delta(self, factors: Tensor) -> Tensor:
        """Step sizes before the softplus, [G, b, T, D]."""
        flat = factors.flatten(1, 2)
        raw = torch.bmm(flat, self.dt_weight) if self.dt_bias is None else torch.baddbmm(
            self.dt_bias, flat, self.dt_weight)
        return raw.unflatten(1, factors.shape[1:3])


def _tiles(batch: int, per_image: int) -> list[slice]:
    size = max(1, TILE_ELEMENTS // per_image)
    return [slice(start, start + size) for start in range(0, batch, size)]


def state_blocks(steps: int, states: int) -> int:
    """Number of block states that ``forward`` saves for a walk of ``steps`` steps."""
    return 0 if states == 1 else (steps + _grouped.BLOCK_STEPS - 1) // _grouped.BLOCK_STEPS


def forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool,
) -> tuple[Tensor, Tensor]:
    """Returns ``(y, states)``; ``states`` are those before each block of steps, empty for N = 1."""
    dtype = compute_dtype(x)
    batch, length, channels = x.shape
    directions, _, states = A_log.shape
    layouts = _layouts(order, height, width, index, length, directions, states, x.device)
    steps = layouts[0].steps(length)
    shape = (batch, length, channels) if merge else (batch, directions, length, channels)
    y = torch.empty(shape, dtype=ss2d_output_dtype(x), device=x.device)
    saved = x.new_empty((batch, directions, state_blocks(steps, states), channels, states), dtype=dtype)
    parameters = [_Parameters.of(layout, dt_weight, dt_bias, A_log, D_skip, dtype) for layout in layouts]

    for tile in _tiles(batch, len(layouts[0].directions) * steps * channels * states):
        x_ = x[tile].to(dtype).unsqueeze(0)
        p_ = proj[tile].permute(2, 0, 1, 3).to(dtype)
        total = torch.zeros_like(x_[0])
        for layout, params in zip(layouts, parameters, strict=True):
            k = layout.directions
            factors, B_, C_ = params.split(layout.to_walk(p_[k]))
            u = layout.to_walk(x_)
            delta = _softplus_(params.raw_delta(factors))
            if states == 1:
                y_k = _grouped.states_single(u, delta, params.A, B_, walk=layout.walk)
                y_k = y_k if C_ is None else y_k.mul_(C_)
            else:
                assert C_ is not None  # the shape check lets C be left out only for N = 1
                y_k, _, starts = _grouped.forward_blocked(u, delta, params.A, B_, C_, None)
                saved[tile, k] = starts.transpose(0, 1)
            y_k = layout.to_natural(y_k)
            skip = layout.visited(params.skip) if params.skip is not None else None  # [G, 1 or L, D]
            if merge:
                total.add_(y_k.sum(0))
                if skip is not None:
                    total.addcmul_(x_[0], skip.sum(0))
            else:
                y_k = y_k if skip is None else torch.addcmul(y_k, x_, skip.unsqueeze(1))
                y[tile, k] = y_k.transpose(0, 1).to(y.dtype)
        if merge:
            y[tile] = total
    return y, saved


def _softplus_(raw: Tensor) -> Tensor:
    return torch.ops.aten.softplus.out(raw, 1, 20, out=raw)


def backward(
        dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
        D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        saved: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of (x, proj, dt_weight, dt_bias, A_log, D_skip); empty tensors for absent arguments."""
    dtype = compute_dtype(x)
    batch, length, channels = x.shape
    directions, _, states = A_log.shape
    layouts = _layouts(order, height, width, index, length, directions, states, x.device)
    steps = layouts[0].steps(length)
    dx, dproj = x.new_empty(x.shape), proj.new_empty(proj.shape)
    dweight, dA = (torch.zeros(p.shape, dtype=dtype, device=x.device) for p in (dt_weight, A_log))
    dbias, dskip = (torch.zeros(directions, channels, dtype=dtype, device=x.device) for _ in range(2))
    parameters = [_Parameters.of(layout, dt_weight, dt_bias, A_log, D_skip, dtype) for layout in layouts]

    for tile in _tiles(batch, len(layouts[0].directions) * steps * channels * states):
        x_ = x[tile].to(dtype).unsqueeze(0)
        p_ = proj[tile].permute(2, 0, 1, 3).to(dtype)
        dy_ = dy[tile].to(dtype).unsqueeze(0) if merge else dy[tile].to(dtype).transpose(0, 1)
        dx_ = torch.zeros_like(x_[0])
        for layout, params in zip(layouts, parameters, strict=True):
            k = layout.directions
            dy_k = dy_ if merge else dy_[k]
            factors, B_, C_ = params.split(layout.to_walk(p_[k]))
            u, dy_walk = layout.to_walk(x_), layout.to_walk(dy_k)
            raw = params.raw_delta(factors)
            delta = F.softplus(raw)
            if states == 1:
                grads = _grouped.backward_single(dy_walk, None, u, delta, params.A, B_, C_, walk=layout.walk)
            else:
                assert C_ is not None
                grads = _grouped.backward_blocked(
                    dy_walk, None, u, delta, params.A, B_, C_, saved[tile, k].transpose(0, 1))
            draw = grads.delta.mul_(raw.sigmoid_()).flatten(1, 2)
            dA[k] += grads.A
            dbias[k] += draw.sum(1)
            dweight[k] += torch.bmm(draw.transpose(1, 2), factors.flatten(1, 2))
            dfactors = torch.bmm(draw, params.dt_weight.transpose(1, 2)).unflatten(1, factors.shape[1:3])
            dp = torch.cat([dfactors, grads.B, *([grads.C] if C_ is not None else [])], dim=-1)
            dproj[tile, :, k] = layout.to_natural(dp).permute(1, 2, 0, 3).to(dproj.dtype)
            dx_ += layout.to_natural(grads.u).sum(0)
            if params.skip is not None:
                visited = layout.visited(torch.ones_like(params.skip)).unsqueeze(1)
                dskip[k] += (dy_k * x_ * visited).sum((1, 2))
                dx_ += (dy_k * (visited * params.skip[:, None, None])).sum(0)
        dx[tile] = dx_

    absent = x.new_empty(0)
    return (
        dx, dproj, dweight.to(dt_weight.dtype), dbias.to(dt_bias.dtype) if dt_bias is not None else absent,
        (dA * -torch.exp(A_log.to(dtype))).to(A_log.dtype),  # A = -exp(A_log), so dA/dA_log = A
        dskip.to(D_skip.dtype) if D_skip is not None else absent,
    )
