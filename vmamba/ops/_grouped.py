"""Forward and backward of a selective scan over groups of channels, in plain torch: the path for CPUs.

Layout: channels last, ``u, delta [B, G, T, D]`` with ``delta`` after its softplus, ``A [G, D, N]``,
``B_, C_ [B, G, T, N]``, states ``[B, G, D, N]``.  A scan direction is a group.
Two evaluations: with one state per channel the whole sequence is held and chained in chunks (``_recurrence``); with
several, blocks of steps are expanded one at a time so that the N-fold tensors stay in cache.
The gradients follow the reverse recurrence ``g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}``.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._recurrence import scan_

LOG2E = math.log2(math.e)  # exp2 is several times faster than exp on CPUs
BLOCK_STEPS = 16
"""Steps expanded at once when N > 1: large enough to amortise launches, small enough for the cache."""

BUFFERS_FORWARD, BUFFERS_BACKWARD = 1, 5
"""Number of buffers ``[B, G, T, D]`` that ``states_single`` and ``backward_single`` work in.

On CPUs, touching fresh memory costs more than the arithmetic, so callers with many tiles hand in the same buffers.
"""


class Gradients(NamedTuple):
    """Gradients of the grouped scan, shaped like its arguments."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    initial_state: Tensor | None


def states_single(
        u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, initial_state: Tensor | None = None,
        buffers: list[Tensor] | None = None,
) -> Tensor:
    """States after every step for N = 1, ``[B, G, T, D]``, in the buffer; ``delta`` is overwritten."""
    (h,) = buffers or [torch.empty_like(delta)]
    torch.mul(delta, u, out=h).mul_(B_)
    a = delta.mul_(_rates(A)).exp2_()
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    scan_(a, h)
    return h


def _rates(A: Tensor) -> Tensor:
    """Decay rates of N = 1 to base two, [G, 1, D]."""
    return A.transpose(1, 2) * LOG2E


def backward_single(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor | None,
        initial_state: Tensor | None = None, buffers: list[Tensor] | None = None,
) -> Gradients:
    """Gradients for N = 1 from those of ``y = C h`` (``C_`` None: of h), recomputing the states.

    The gradients of u and delta are in buffers.
    """
    a, drive, h, b, e = buffers or [torch.empty_like(delta) for _ in range(BUFFERS_BACKWARD)]
    torch.mul(delta, _rates(A), out=a).exp2_()
    torch.mul(u, B_, out=drive)
    torch.mul(delta, drive, out=h)
    if initial_state is not None:
        h[:, :, 0].addcmul_(a[:, :, 0], initial_state[..., 0])
    scan_(e.copy_(a), h)
    # exp(delta_t A) h_{t-1}, from the same product as in h: it is exactly zero where the state has decayed
    carried = torch.sub(h, torch.mul(delta, drive, out=b), out=b)
    dC = torch.mul(dy, h, out=h).sum(-1, keepdim=True) if C_ is not None else h.new_empty(0)

    g = torch.mul(dy, C_, out=h) if C_ is not None else h.copy_(dy)
    if dlast is not None:
        g[:, :, -1].add_(dlast[..., 0])
    torch.mul(a, g, out=e)  # e_t = a_t g_t obeys the recurrence of the states, walked backwards
    scan_(a, e, reverse=True)
    g[:, :, :-1].add_(e[:, :, 1:])
    dinitial = e[:, :, 0].unsqueeze(-1).clone() if initial_state is not None else None

    through_decay = carried.mul_(g)
    dA = torch.mul(through_decay, delta, out=e).sum((0, 2)).unsqueeze(-1)
    ddelta = through_decay.mul_(A.transpose(1, 2)).addcmul_(g, drive)
    g.mul_(delta)
    dB = torch.mul(g, u, out=e).sum(-1, keepdim=True)
    return Gradients(g.mul_(B_), ddelta, dA, dB, dC, dinitial)


def state_blocks(length: int, states: int) -> int:
    """Number of states that :func:`forward_blocked` saves; none are saved for N = 1."""
    return 0 if states == 1 else (length + BLOCK_STEPS - 1) // BLOCK_STEPS


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(t, min(t + BLOCK_STEPS, length)) for t in range(0, length, BLOCK_STEPS)]


class _Block:
    """The N-fold tensors ``[B, G, t, N, D]`` of one block of steps; states before channels, so that rows are long."""

    def __init__(self, delta: Tensor, A: Tensor, count: int) -> None:
        batch, groups, length, channels = delta.shape
        shape = (batch, groups, min(length, BLOCK_STEPS), A.shape[2], channels)
        self.buffers = [delta.new_empty(shape) for _ in range(count)]
        self.rate = A.transpose(1, 2).unsqueeze(1).contiguous()  # [G, 1, N, D]
        self.rate2 = self.rate * LOG2E

    def expand(self, step: Tensor, weighted: Tensor, B_: Tensor) -> list[Tensor]:
        """Decays and inputs of the steps, then the remaining buffers.

        Args:
            step: Step sizes [B, G, t, D].
            weighted: Step sizes times u.
            B_: [B, G, t, N].
        """
        a, b, *rest = (x[:, :, :step.shape[2]] for x in self.buffers)
        torch.mul(step.unsqueeze(-2), self.rate2, out=a).exp2_()
        torch.mul(weighted.unsqueeze(-2), B_.unsqueeze(-1), out=b)
        return [a, b, *rest]


def forward_blocked(
        u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor, initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scan with any N, left to right.

    Returns:
        ``(y [B, G, T, D], last_state [B, G, D, N], states before each block [B, G, blocks, N, D])``.
    """
    batch, groups, length, channels = delta.shape
    blocks = _blocks(length)
    starts = delta.new_zeros(batch, groups, len(blocks), A.shape[2], channels)
    state = starts[:, :, 0] if initial_state is None else initial_state.transpose(2, 3)
    y, weighted, block = torch.empty_like(delta), delta * u, _Block(delta, A, 2)
    for i, (t0, t1) in enumerate(blocks):
        starts[:, :, i] = state
        a, h = block.expand(delta[:, :, t0:t1], weighted[:, :, t0:t1], B_[:, :, t0:t1])
        state = _advance_(a, h, starts[:, :, i])  # lies in the buffer: kept in `starts` before that is filled anew
        y[:, :, t0:t1] = torch.matmul(C_[:, :, t0:t1].unsqueeze(-2), h).squeeze(-2)
    return y, state.transpose(2, 3).clone(), starts


def backward_blocked(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B_: Tensor, C_: Tensor,
        starts: Tensor,
) -> Gradients:
    """Gradients of :func:`forward_blocked` from the states saved before each block."""
    du, ddelta = torch.empty_like(delta), torch.empty_like(delta)
    dB, dC = torch.empty_like(B_), torch.empty_like(C_)
    dA = A.new_zeros(A.shape[0], A.shape[2], A.shape[1])
    carry = torch.zeros_like(starts[:, :, 0]) if dlast is None else dlast.transpose(2, 3).clone()
    weighted, block = delta * u, _Block(delta, A, 4)
    for i, (t0, t1) in reversed(list(enumerate(_blocks(delta.shape[2])))):
        step, dy_, B_t = delta[:, :, t0:t1], dy[:, :, t0:t1], B_[:, :, t0:t1]
        a, b, h, g = block.expand(step, weighted[:, :, t0:t1], B_t)
        _advance_(a, h.copy_(b), starts[:, :, i])
        dC[:, :, t0:t1] = torch.matmul(h, dy_.unsqueeze(-1)).squeeze(-1)

        torch.mul(dy_.unsqueeze(-2), C_[:, :, t0:t1].unsqueeze(-1), out=g)
        decays, grads = a.unbind(2), g.unbind(2)
        for t in range(t1 - t0 - 1, -1, -1):
            grads[t].add_(carry)
            torch.mul(decays[t], grads[t], out=carry)

        through_decay = h.sub_(b).mul_(g)
        dA += torch.mul(through_decay, step.unsqueeze(-2), out=a).sum((0, 2))
        drive = torch.matmul(B_t.unsqueeze(-2), g).squeeze(-2)
        torch.mul(drive, step, out=du[:, :, t0:t1])
        ddelta[:, :, t0:t1] = through_decay.mul_(block.rate).sum(-2).addcmul_(drive, u[:, :, t0:t1])
        dB[:, :, t0:t1] = torch.matmul(g, weighted[:, :, t0:t1].unsqueeze(-1)).squeeze(-1)
    return Gradients(du, ddelta, dA.transpose(1, 2), dB, dC, carry.transpose(2, 3))


def _advance_(a: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """Replace inputs ``b`` by states, one step at a time; returns the last."""
    for decay, value in zip(a.unbind(2), b.unbind(2), strict=True):
        state = value.addcmul_(decay, state)
    return state
