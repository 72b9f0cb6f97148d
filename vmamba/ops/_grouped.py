"""Forward and backward of a selective scan over groups of channels, in plain torch: the path for CPUs.

Layout: group first and channels last, ``u, delta [G, B, T, D]`` with ``delta`` after its softplus, ``A [G, D, N]``,
``B_, C_ [G, B, T, N]``, states ``[G, B, D, N]``.  A scan direction is a group.
Two evaluations: with one state per channel the whole sequence is held and chained in chunks (``_recurrence``); with
several, blocks of steps are expanded one at a time so that the N-fold tensors stay in cache.
The gradients follow the reverse recurrence ``g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}``.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._recurrence import scan_, scan_grid_

LOG2E = math.log2(math.e)  # exp2 is several times faster than exp on CPUs
BLOCK_STEPS = 16
"""Steps expanded at once when N > 1: large enough to amortise launches, small enough for the cache."""


class Walk(NamedTuple):
    """Where a sequence of T = height * width steps lies in a row-major grid: along its rows, or along its columns."""

    height: int
    width: int
    column: bool

    def grid(self, x: Tensor) -> Tensor:
        """View ``[G, B, T, D]`` as lines ``[G, B, lines, steps, D]``, one after another in the order of the walk."""
        lines = x.unflatten(2, (self.height, self.width))
        return lines.transpose(2, 3) if self.column else lines


class Gradients(NamedTuple):
    """Gradients of the grouped scan, shaped like its arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial_state: Tensor | None


def _recur_(a: Tensor, b: Tensor, walk: Walk | None, reverse: bool = False) -> None:
    """Replace ``b`` by the states of the recurrence with decays ``a`` (overwritten)."""
    if walk is None:
        scan_(a, b, reverse)
    else:
        scan_grid_(walk.grid(a), walk.grid(b), reverse)


def _add_next_(g: Tensor, e: Tensor, walk: Walk | None) -> None:
    """Add to ``g_t`` the entry ``e_{t+1}`` of the next step."""
    if walk is None:
        g[:, :, :-1].add_(e[:, :, 1:])
    else:
        g, e = walk.grid(g), walk.grid(e)
        g[:, :, :, :-1].add_(e[:, :, :, 1:])
        g[:, :, :-1, -1].add_(e[:, :, 1:, 0])


BUFFERS_FORWARD, BUFFERS_BACKWARD = 1, 5
"""Number of buffers ``[G, B, T, D]`` that ``states_single`` and ``backward_single`` work in.

On CPUs, touching fresh memory costs more than the arithmetic, so callers with many tiles hand in the same buffers.
"""


def states_single(
        u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, initial_state: Tensor | None = None, walk: Walk | None = None,
        buffers: list[Tensor] | None = None,
) -> Tensor:
    """States after every step for N = 1, ``[G, B, T, D]``, in the buffer; ``delta`` is overwritten."""
    (h,) = buffers or [torch.empty_like(delta)]
    torch.mul(delta, u, out=h).mul_(B_)
    a = delta.mul_(A[:, None, None, :, 0] * LOG2E).exp2_()
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    _recur_(a, h, walk)
    return h


def backward_single(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor | None,
        initial_state: Tensor | None = None, walk: Walk | None = None, buffers: list[Tensor] | None = None,
) -> Gradients:
    """Gradients for N = 1 from those of ``y = C h`` (``C_`` None: of h), recomputing the states.

    The gradients of u and delta are in buffers.
    """
    rate = A[:, None, None, :, 0]
    a, drive, h, b, e = buffers or [torch.empty_like(delta) for _ in range(BUFFERS_BACKWARD)]
    torch.mul(delta, rate * LOG2E, out=a).exp2_()
    torch.mul(u, B_, out=drive)
    torch.mul(delta, drive, out=h)
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    _recur_(e.copy_(a), h, walk)
    # exp(delta_t A) h_{t-1}, from the same product as in h: it is exactly zero where the state has decayed
    carried = torch.sub(h, torch.mul(delta, drive, out=b), out=b)
    dC = torch.mul(dy, h, out=h).sum(-1, keepdim=True) if C_ is not None else h.new_empty(0)

    g = torch.mul(dy, C_, out=h) if C_ is not None else h.copy_(dy)
    if dlast is not None:
        g[:, :, -1].add_(dlast[..., 0])
    torch.mul(a, g, out=e)  # e_t = a_t g_t obeys the recurrence of the states, walked backwards
    _recur_(a, e, walk, reverse=True)
    _add_next_(g, e, walk)
    dinitial = e[:, :, 0].unsqueeze(-1).clone() if initial_state is not None else None

    through_decay = carried.mul_(g)
    dA = torch.mul(through_decay, delta, out=e).sum((1, 2)).unsqueeze(-1)
    ddelta = through_decay.mul_(rate).addcmul_(g, drive)
    g.mul_(delta)
    dB = torch.mul(g, u, out=e).sum(-1, keepdim=True)
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
