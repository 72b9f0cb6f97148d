"""Forward and backward of a selective scan over groups of channels, in plain torch: the path for CPUs.

Layout: group first and channels last, ``u, delta [G, B, T, D]`` with ``delta`` after its softplus, ``A [G, D, N]``,
``B_, C_ [G, B, T, N]``, states ``[G, B, D, N]``.  A scan direction is a group; ``u`` may have one group for all.
Two evaluations: with one state per channel the whole sequence is held and chained in chunks (``_recurrence``); with
several, blocks of steps are expanded one at a time so that the N-fold tensors stay in cache.
The gradients follow the reverse recurrence ``g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}``.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vmamba.scans import Route

from ._recurrence import scan_, scan_grid_

LOG2E = math.log2(math.e)
BLOCK_STEPS = 16
"""Steps expanded at once when N > 1: large enough to amortise launches, small enough for the cache."""


class Walk(NamedTuple):
    """How each group's sequence lies in memory: rows or columns of a grid, or None for plain left to right."""

    routes: tuple[Route, ...]
    height: int
    width: int


class Gradients(NamedTuple):
    """Gradients of the grouped scan, shaped like their arguments (``du`` has all groups)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial_state: Tensor | None


def _walk_(a: Tensor, b: Tensor, walk: Walk | None, backwards: bool = False) -> None:
    """Run the recurrence in place over every group, along the walk or against it."""
    if walk is None:
        scan_(a, b, reverse=backwards)
        return
    for k, route in enumerate(walk.routes):
        a_grid, b_grid = (v[k].unflatten(1, (walk.height, walk.width)) for v in (a, b))  # [B, H, W, D]
        if route.column:
            a_grid, b_grid = a_grid.transpose(1, 2), b_grid.transpose(1, 2)
        scan_grid_(a_grid, b_grid, reverse=route.reverse != backwards)


def _add_next_(g: Tensor, e: Tensor, walk: Walk | None) -> None:
    """Add to ``g_t`` the entry ``e_{t+1}`` of the next step of the walk."""
    if walk is None:
        g[:, :, :-1].add_(e[:, :, 1:])
        return
    for k, route in enumerate(walk.routes):
        g_grid, e_grid = (v[k].unflatten(1, (walk.height, walk.width)) for v in (g, e))
        if route.column:
            g_grid, e_grid = g_grid.transpose(1, 2), e_grid.transpose(1, 2)
        if route.reverse:
            g_grid[:, :, 1:].add_(e_grid[:, :, :-1])
            g_grid[:, 1:, 0].add_(e_grid[:, :-1, -1])
        else:
            g_grid[:, :, :-1].add_(e_grid[:, :, 1:])
            g_grid[:, :-1, -1].add_(e_grid[:, 1:, 0])


def forward_single(
        u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor | None, initial_state: Tensor | None,
        walk: Walk | None,
) -> tuple[Tensor, Tensor]:
    """Scan with N = 1; ``C_`` None returns the states themselves.

    ``initial_state`` and the returned last state only make sense for a plain walk.

    Returns:
        ``(y [G, B, T, D], last_state [G, B, D, 1])``.
    """
    a = torch.mul(delta, A[:, None, None, :, 0] * LOG2E).exp2_()
    h = torch.mul(delta, u).mul_(B_)
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    _walk_(a, h, walk)
    last_state = h[:, :, -1].unsqueeze(-1).clone() if walk is None else h.new_empty(0)
    return (h if C_ is None else h.mul_(C_)), last_state


def backward_single(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor | None,
        initial_state: Tensor | None, walk: Walk | None,
) -> Gradients:
    """Gradients of :func:`forward_single`, recomputing the states; ``dy`` may have one group for all."""
    rate = A[:, None, None, :, 0]
    a = torch.mul(delta, rate * LOG2E).exp2_()
    drive = u * B_
    b = delta * drive
    h, scratch = b.clone(), a.clone()
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    _walk_(scratch, h, walk)

    dC = (dy * h).sum(-1, keepdim=True) if C_ is not None else h.new_zeros(0)
    carried = h.sub_(b)  # exp(delta_t A) h_{t-1}
    g = dy * C_ if C_ is not None else dy.expand_as(delta).clone()
    if dlast is not None:
        g[:, :, -1].add_(dlast[..., 0])
    e = torch.mul(a, g, out=scratch)  # e_t = a_t g_t obeys the same recurrence as h, walked backwards
    _walk_(a, e, walk, backwards=True)
    _add_next_(g, e, walk)

    dinitial = e[:, :, 0].unsqueeze(-1).clone() if initial_state is not None else None
    through_decay = carried.mul_(g)
    dA = (through_decay * delta).sum((1, 2)).unsqueeze(-1)
    ddelta = through_decay.mul_(rate).addcmul_(g, drive)
    g.mul_(delta)
    dB = (g * u).sum(-1, keepdim=True)
    return Gradients(g.mul_(B_), ddelta, dA, dB, dC, dinitial)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(t, min(t + BLOCK_STEPS, length)) for t in range(0, length, BLOCK_STEPS)]


def _expand(u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, t0: int, t1: int) -> tuple[Tensor, Tensor]:
    """Decays and inputs of steps t0 to t1, ``[G, B, t, D, N]`` each."""
    step = delta[:, :, t0:t1]
    a = torch.mul(step.unsqueeze(-1), (A * LOG2E)[:, None, None]).exp2_()
    b = (step * u[:, :, t0:t1]).unsqueeze(-1) * B_[:, :, t0:t1].unsqueeze(-2)
    return a, b


def forward_blocked(
        u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor, initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan with any N, left to right.

    Returns:
        ``(y [G, B, T, D], last_state [G, B, D, N], states before each block [G, B, blocks, D, N])``.
    """
    state = _first_state(delta, A, initial_state)
    y = torch.empty_like(delta)
    blocks = _blocks(delta.shape[2])
    starts = state.new_empty(*state.shape[:2], len(blocks), *state.shape[2:])
    for i, (t0, t1) in enumerate(blocks):
        starts[:, :, i] = state
        a, h = _expand(u, delta, A, B_, t0, t1)
        state = _advance_(a, h, state)
        y[:, :, t0:t1] = torch.matmul(h, C_[:, :, t0:t1].unsqueeze(-1)).squeeze(-1)
    return y, state.clone(), starts


def backward_blocked(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor,
        starts: Tensor,
) -> Gradients:
    """Gradients of :func:`forward_blocked` from the states saved before each block."""
    dy = dy.expand_as(delta)
    du, ddelta = torch.empty_like(delta), torch.empty_like(delta)
    dB, dC, dA = torch.empty_like(B_), torch.empty_like(C_), torch.zeros_like(A)
    carry = torch.zeros_like(starts[:, :, 0]) if dlast is None else dlast.clone()
    for i, (t0, t1) in reversed(list(enumerate(_blocks(delta.shape[2])))):
        a, b = _expand(u, delta, A, B_, t0, t1)
        h = b.clone()
        _advance_(a, h, starts[:, :, i])
        step, dy_, B_t = delta[:, :, t0:t1], dy[:, :, t0:t1], B_[:, :, t0:t1]
        dC[:, :, t0:t1] = torch.matmul(dy_.unsqueeze(-2), h).squeeze(-2)

        g = dy_.unsqueeze(-1) * C_[:, :, t0:t1].unsqueeze(-2)
        decays, grads = a.unbind(2), g.unbind(2)
        for t in range(t1 - t0 - 1, -1, -1):
            grads[t].add_(carry)
            carry = decays[t] * grads[t]

        through_decay = h.sub_(b).mul_(g)
        dA += torch.einsum("gbtd,gbtdn->gdn", step, through_decay)
        drive = torch.matmul(g, B_t.unsqueeze(-1)).squeeze(-1)
        du[:, :, t0:t1] = drive * step
        ddelta[:, :, t0:t1] = (through_decay * A[:, None, None]).sum(-1).addcmul_(drive, u[:, :, t0:t1])
        dB[:, :, t0:t1] = torch.matmul((step * u[:, :, t0:t1]).unsqueeze(-2), g).squeeze(-2)
    return Gradients(du, ddelta, dA, dB, dC, carry)


def _first_state(delta: Tensor, A: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state
    groups, batch, _, channels = delta.shape
    return delta.new_zeros(groups, batch, channels, A.shape[2])


def _advance_(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """Replace inputs ``b`` by states, one step at a time; returns the last."""
    for decay, value in zip(a.unbind(2), b.unbind(2), strict=True):
        state = value.addcmul_(decay, state)
    return state
