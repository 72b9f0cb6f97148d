"""Plain torch path of ``ss2d_scan``, forward and backward.

A projection per token commutes with any order, so all but the recurrence is computed in natural order.  With one state
per channel, rows and columns are walked as strided views and nothing is permuted; a reversed direction is the forward
one on the image turned by 180 degrees, so both share each vector operation (``_RouteLayout``).  Other orders and larger
states gather their sequences by the table of the order (``_TableLayout``).

Tensors of walks have the group axis first, ``[G, b, T, C]``; letters as in ``reference``.
"""
from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vmamba.scans import Route, ScanOrder, scan_order, scan_routes

from . import _grouped
from ._shapes import compute_dtype, ss2d_output_dtype

TILE_ELEMENTS = 1 << 20
"""Elements of one [G, b, T, D * N] tensor that are worked on at once, so that a tile stays in the cache."""


class _Layout(ABC):
    """Directions that share the order of their sequences, and how that order relates to the natural one."""

    walks: list[tuple[list[int], _grouped.Walk | None]]
    """Directions [G] that one pass of the grouped scan walks together, and how."""

    @abstractmethod
    def to_walk(self, x: Tensor) -> Tensor:
        """``[1 or G, b, L, C]`` in natural order -> ``[G, b, T, C]`` in the order of each direction's sequence."""

    @abstractmethod
    def to_natural(self, x: Tensor) -> Tensor:
        """``[G, b, T, C] -> [G, b, L, C]``; zeros at tokens that a direction never visits."""

    def steps(self, length: int) -> int:
        """Steps T of a walk over ``length`` tokens."""
        return length

    def visited(self, skip: Tensor) -> Tensor:
        """``[G, D] -> [G, 1 or L, D]``, zero at tokens that a direction never visits."""
        return skip.unsqueeze(1)


class _RouteLayout(_Layout):
    """Rows and columns, each walked forwards, backwards, or both together."""

    def __init__(self, reversals: tuple[bool, ...], walks: list[tuple[list[int], _grouped.Walk | None]]) -> None:
        self.reversals, self.walks = reversals, walks

    def to_walk(self, x: Tensor) -> Tensor:
        if self.reversals == (False,):
            return x
        parts = x.unbind(0) if x.shape[0] > 1 else x.unbind(0) * len(self.reversals)
        return torch.stack([p.flip(1) if back else p for p, back in zip(parts, self.reversals, strict=True)])

    def to_natural(self, x: Tensor) -> Tensor:
        return self.to_walk(x)  # turning by 180 degrees undoes itself


class _TableLayout(_Layout):
    """Any order, by its table."""

    def __init__(self, order: ScanOrder) -> None:
        self.order, self.walks = order, [(list(range(order.num_directions)), None)]

    def to_walk(self, x: Tensor) -> Tensor:
        return _gather(x.expand(self.order.num_directions, -1, -1, -1), self.order.index)

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


def _route_layouts(routes: tuple[Route, ...], height: int, width: int) -> list[_Layout]:
    """Pair each direction with its reverse, and put pairs and single directions into layouts of their own."""
    pairs: dict[tuple[bool, ...], list[tuple[list[int], _grouped.Walk | None]]] = {}
    single = list(range(len(routes)))
    while single:
        k = single.pop(0)
        partner = next((i for i in single if routes[i] == Route(routes[k].column, not routes[k].reverse)), None)
        directions = [k] if partner is None else [k, partner]
        if partner is not None:
            single.remove(partner)
        walk = _grouped.Walk(height, width, routes[k].column)
        pairs.setdefault(tuple(routes[i].reverse for i in directions), []).append((directions, walk))
    return [_RouteLayout(reversals, walks) for reversals, walks in pairs.items()]


class _Plan:
    """One call of the operator: layouts, parameters in the compute dtype, tiles and working memory."""

    def __init__(
            self, x: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
            order: str, height: int, width: int, index: Tensor | None,
    ) -> None:
        self.dtype = compute_dtype(x)
        self.batch, self.length, self.channels = x.shape
        self.directions, _, self.states = A_log.shape
        routes = scan_routes(order, self.directions) if index is None else None
        if index is not None:
            self.layouts: list[_Layout] = [_TableLayout(ScanOrder("custom", (height, width), index, self.length))]
        elif routes is None or self.states > 1:
            self.layouts = [_TableLayout(scan_order(order, (height, width), self.directions, x.device))]
        else:
            self.layouts = _route_layouts(routes, height, width)
        self.steps = self.layouts[0].steps(self.length)
        # The bias rides along as one more row of the matrix, against a column of ones beside the delta factors.
        bias = dt_bias if dt_bias is not None else torch.zeros_like(dt_weight[..., 0])
        self.weight = torch.cat([dt_weight, bias.unsqueeze(-1)], dim=-1).to(self.dtype).transpose(1, 2)  # [K, R + 1, D]
        self.A = -torch.exp(A_log.to(self.dtype))
        self.skip = D_skip.to(self.dtype) if D_skip is not None else None
        self._buffers: list[Tensor] = []

    def tiles(self) -> list[slice]:
        """Images that are worked on together."""
        together = max(len(directions) for layout in self.layouts for directions, _ in layout.walks)
        size = max(1, TILE_ELEMENTS // (together * self.steps * self.channels * self.states))
        return [slice(start, start + size) for start in range(0, self.batch, size)]

    def buffers(self, count: int, like: Tensor) -> list[Tensor]:
        """Memory for ``count`` tensors shaped as ``like``, the same again for every tile of that shape."""
        if len(self._buffers) < count or self._buffers[0].shape != like.shape:
            self._buffers = [torch.empty_like(like) for _ in range(count)]
        return self._buffers[:count]

    def split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of the projection ``[G, b, T, P]`` -> delta factors beside a 1, B and C (None where left out)."""
        rank = self.weight.shape[1] - 1
        factors = torch.cat([p[..., :rank], torch.ones_like(p[..., :1])], dim=-1)
        C = p[..., rank + self.states:] if p.shape[-1] > rank + self.states else None
        return factors, p[..., rank:rank + self.states], C

    def raw_delta(self, factors: Tensor, directions: list[int], out: Tensor) -> Tensor:
        """Step sizes before the softplus, [G, b, T, D]."""
        torch.bmm(factors.flatten(1, 2), self.weight[directions], out=out.flatten(1, 2))
        return out


def state_blocks(steps: int, states: int) -> int:
    """Number of block states that ``forward`` saves for a walk of ``steps`` steps."""
    return 0 if states == 1 else (steps + _grouped.BLOCK_STEPS - 1) // _grouped.BLOCK_STEPS


def forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool,
) -> tuple[Tensor, Tensor]:
    """Returns ``(y, states)``; ``states`` are those before each block of steps, empty for N = 1."""
    plan = _Plan(x, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    shape = (plan.batch, plan.length, plan.channels)
    y = torch.empty(
        shape if merge else (shape[0], plan.directions, *shape[1:]), dtype=ss2d_output_dtype(x), device=x.device)
    blocks = state_blocks(plan.steps, plan.states)
    saved = x.new_empty((plan.batch, plan.directions, blocks, plan.channels, plan.states), dtype=plan.dtype)

    for tile in plan.tiles():
        x_ = x[tile].to(plan.dtype).unsqueeze(0)
        p_ = proj[tile].permute(2, 0, 1, 3).to(plan.dtype)
        total = torch.zeros_like(x_[0])
        for layout in plan.layouts:
            u = layout.to_walk(x_)
            merged = torch.zeros_like(u) if merge else None
            for k, walk in layout.walks:
                y_k = _scan_walk(plan, u, layout.to_walk(p_[k]), k, walk, saved[tile])
                skip = layout.visited(plan.skip[k]) if plan.skip is not None else None  # [G, 1 or L, D]
                if merged is not None:
                    merged.add_(y_k)
                    if skip is not None:
                        total.addcmul_(x_[0], skip.sum(0))
                else:
                    y_k = layout.to_natural(y_k)
                    y_k = y_k if skip is None else torch.addcmul(y_k, x_, skip.unsqueeze(1))
                    y[tile, k] = y_k.transpose(0, 1).to(y.dtype)
            if merged is not None:
                total.add_(layout.to_natural(merged).sum(0))
        if merge:
            y[tile] = total
    return y, saved


def _scan_walk(
        plan: _Plan, u: Tensor, p: Tensor, directions: list[int], walk: _grouped.Walk | None, saved: Tensor) -> Tensor:
    """Outputs of the directions of one walk, without their skip; block states go to ``saved`` [b, K, blocks, D, N]."""
    factors, B_, C_ = plan.split(p)
    delta, *buffers = plan.buffers(1 + _grouped.BUFFERS_FORWARD, u)
    _softplus_(plan.raw_delta(factors, directions, delta))
    A = plan.A[directions]
    if plan.states == 1:
        h = _grouped.states_single(u, delta, A, B_, walk=walk, buffers=buffers)
        return h if C_ is None else h.mul_(C_)
    assert C_ is not None  # the shape check lets C be left out only for N = 1
    y, _, starts = _grouped.forward_blocked(u, delta, A, B_, C_, None)
    saved[:, directions] = starts.transpose(0, 1)
    return y


def _softplus_(raw: Tensor) -> Tensor:
    return torch.ops.aten.softplus.out(raw, 1, 20, out=raw)


def backward(
        dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
        D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        saved: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of (x, proj, dt_weight, dt_bias, A_log, D_skip); empty tensors for absent arguments."""
    plan = _Plan(x, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    dx, dproj = x.new_empty(x.shape), proj.new_empty(proj.shape)
    dweight, dA = torch.zeros_like(plan.weight), torch.zeros_like(plan.A)
    dskip = torch.zeros_like(plan.A[..., 0])

    for tile in plan.tiles():
        x_ = x[tile].to(plan.dtype).unsqueeze(0)
        p_ = proj[tile].permute(2, 0, 1, 3).to(plan.dtype)
        dy_ = dy[tile].to(plan.dtype).unsqueeze(0) if merge else dy[tile].to(plan.dtype).transpose(0, 1)
        dx_ = torch.zeros_like(x_[0])
        for layout in plan.layouts:
            u = layout.to_walk(x_)
            dy_walk = layout.to_walk(dy_) if merge else None
            du = torch.zeros_like(u)
            for k, walk in layout.walks:
                dy_k = dy_ if merge else dy_[k]
                grads, dp = _scan_walk_backward(
                    plan, layout.to_walk(dy_k) if dy_walk is None else dy_walk, u, layout.to_walk(p_[k]), k, walk,
                    saved[tile], dweight)
                dA[k] += grads.A
                dproj[tile, :, k] = layout.to_natural(dp).permute(1, 2, 0, 3).to(dproj.dtype)
                du.add_(grads.u)
                if plan.skip is not None:
                    visited = layout.visited(torch.ones_like(plan.skip[k])).unsqueeze(1)  # [G, 1, 1 or L, D]
                    dskip[k] += (dy_k * x_ * visited).sum((1, 2))
                    dx_ += (dy_k * (visited * plan.skip[k][:, None, None])).sum(0)
            dx_ += layout.to_natural(du).sum(0)
        dx[tile] = dx_

    absent = x.new_empty(0)
    dweight, dbias = dweight[:, :-1].transpose(1, 2), dweight[:, -1]
    return (
        dx, dproj, dweight.to(dt_weight.dtype).contiguous(),
        dbias.to(dt_bias.dtype).contiguous() if dt_bias is not None else absent,
        dA.mul_(plan.A).to(A_log.dtype),  # A = -exp(A_log), so dA/dA_log = A
        dskip.to(D_skip.dtype) if D_skip is not None else absent,
    )


def _scan_walk_backward(
        plan: _Plan, dy: Tensor, u: Tensor, p: Tensor, directions: list[int], walk: _grouped.Walk | None,
        saved: Tensor, dweight: Tensor,
) -> tuple[_grouped.Gradients, Tensor]:
    """Gradients of one walk, and of its rows of the projection; that of the delta weight is added to ``dweight``."""
    factors, B_, C_ = plan.split(p)
    raw, delta, *buffers = plan.buffers(2 + _grouped.BUFFERS_BACKWARD, u)
    _softplus_(delta.copy_(plan.raw_delta(factors, directions, raw)))
    A = plan.A[directions]
    if plan.states == 1:
        grads = _grouped.backward_single(dy, None, u, delta, A, B_, C_, walk=walk, buffers=buffers)
    else:
        assert C_ is not None
        grads = _grouped.backward_blocked(
            dy, None, u, delta, A, B_, C_, saved[:, directions].transpose(0, 1))
    draw = grads.delta.mul_(raw.sigmoid_()).flatten(1, 2)
    dweight[directions] += torch.bmm(factors.flatten(1, 2).transpose(1, 2), draw)
    dfactors = torch.bmm(draw, plan.weight[directions].transpose(1, 2))[..., :-1].unflatten(1, factors.shape[1:3])
    return grads, torch.cat([dfactors, grads.B, *([grads.C] if C_ is not None else [])], dim=-1)
