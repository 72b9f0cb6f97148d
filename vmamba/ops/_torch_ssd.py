"""Plain torch path of the Mamba-2 scan: products within and between chunks of steps, and their gradients.

Dao and Gu, "Transformers are SSMs", arXiv:2405.21060, section 6 and listing 1.

Shape letters: b batch, c chunks, t and s steps of a chunk, g groups, k heads of a group, p a head's channels, n states.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._shapes import compute_dtype

CHUNK = 64  # steps; the work within chunks grows with it, that between them falls


class _Chunks(NamedTuple):
    """The arguments in the compute dtype, cut into chunks; added steps are of size zero and so change nothing."""

    x: Tensor  # [b, c, s, g, k, p]
    steps: Tensor  # [b, c, g, k, s], after bias and softplus
    rates: Tensor  # [g, k, 1]
    B: Tensor  # [b, c, s, g, n]
    C: Tensor


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Step sizes ``[B, L, H]`` as they are used."""
    dt = dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    return F.softplus(dt) if dt_softplus else dt


def skipped(x: Tensor, D: Tensor) -> Tensor:
    """``D x``, for D of heads or of channels; in the dtype of x."""
    return x * (D.to(x.dtype) if D.ndim == 2 else D.to(x.dtype).unsqueeze(-1))


def _cut(t: Tensor, dtype: torch.dtype, *tail: int) -> Tensor:
    """``[B, L, ...]`` to ``[b, c, s, *tail]``."""
    length = t.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK
    t = F.pad(t.to(dtype).flatten(2), (0, 0, 0, chunks * CHUNK - length))
    return t.reshape(t.shape[0], chunks, CHUNK, *tail)


def _uncut(t: Tensor, length: int, *tail: int) -> Tensor:
    """The inverse of ``_cut``: ``[b, c, s, ...]`` to ``[B, L, *tail]``."""
    return t.reshape(t.shape[0], -1, *tail)[:, :length]


def _chunks(x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor) -> _Chunks:
    dtype = steps.dtype
    heads, channels = x.shape[2:]
    groups, states = B.shape[2:]
    shape = (groups, heads // groups)
    return _Chunks(
        _cut(x, dtype, *shape, channels), _cut(steps, dtype, *shape).movedim(2, -1), A.to(dtype).view(*shape, 1),
        _cut(B, dtype, groups, states), _cut(C, dtype, groups, states))


def _decay(total: Tensor) -> Tensor:
    """Decay from the end of step s to that of step t, 0 where t < s: ``[..., T]`` sums of logarithms to [..., T, T]."""
    later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=total.device).tril()
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~later, float("-inf")).exp()


class _Walk(NamedTuple):
    """Decays within chunks and between them."""

    total: Tensor  # [b, c, g, k, t], logarithm of the decay of a chunk up to each of its steps
    within: Tensor  # [b, c, g, k, t, s]
    left: Tensor  # [b, c, g, k, s], what is left of each step at the end of its chunk
    between: Tensor  # [b, g, k, c + 1, c + 1], from what enters the sequence, or ends a chunk, to what enters one


def _walk(chunks: _Chunks) -> _Walk:
    total = (chunks.steps * chunks.rates).cumsum(-1)
    ends = F.pad(total[..., -1], (0, 0, 0, 0, 1, 0)).movedim(1, -1)
    return _Walk(total, _decay(total), torch.exp(total[..., -1:] - total), _decay(ends.cumsum(-1)))


def _entering(chunks: _Chunks, walk: _Walk, initial: Tensor | None) -> Tensor:
    """States that enter each chunk, and the last: ``[b, c + 1, g, k, p, n]``."""
    ends = torch.einsum("bcsgn,bcgks,bcsgkp->bcgkpn", chunks.B, walk.left * chunks.steps, chunks.x)
    first = ends.new_zeros(ends[:, :1].shape) if initial is None else initial.to(ends.dtype).view(ends[:, :1].shape)
    return torch.einsum("bgkzc,bcgkpn->bzgkpn", walk.between, torch.cat([first, ends], dim=1))


def forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None, causal: bool,
) -> tuple[Tensor, Tensor]:
    """y in the dtype of x and the last state in the compute dtype; arguments as of ``vmamba.ops.ssd_scan``."""
    steps = step_sizes(dt, dt_bias, dt_softplus, compute_dtype(x))
    run = _causal if causal else _unordered
    y, last = run(x, steps, A, B, C, initial_state)
    if D is not None:
        y = y + skipped(x.to(y.dtype), D)
    return y.to(x.dtype), last


def _causal(
        x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, length, heads, channels = x.shape
    chunks = _chunks(x, steps, A, B, C)
    walk = _walk(chunks)
    weights = torch.einsum("bctgn,bcsgn->bcgts", chunks.C, chunks.B).unsqueeze(3) * walk.within
    y = torch.einsum("bcgkts,bcgks,bcsgkp->bctgkp", weights, chunks.steps, chunks.x)
    states = _entering(chunks, walk, initial)
    y = y + torch.einsum("bctgn,bcgkpn,bcgkt->bctgkp", chunks.C, states[:, :-1], walk.total.exp())
    return _uncut(y, length, heads, channels), states[:, -1].reshape(batch, heads, channels, -1).contiguous()


def _unordered(
        x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    B_, C_ = (_of_heads(M, x, steps.dtype) for M in (B, C))
    weights = steps * -A.to(steps.dtype)
    state = torch.einsum("blhn,blhp->bhpn", B_, x.to(steps.dtype) * weights.unsqueeze(-1))
    if initial is not None:
        state = state + initial.to(state.dtype)
    return torch.einsum("blhn,bhpn->blhp", C_, state), state


def _of_heads(M: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, L, G, N]`` to ``[B, L, H, N]``."""
    return M.to(dtype).repeat_interleave(x.shape[2] // M.shape[2], dim=2)


def _of_groups(M: Tensor, groups: int) -> Tensor:
    """Sums over the heads of each group: ``[B, L, H, N]`` to ``[B, L, G, N]``."""
    return M.unflatten(2, (groups, -1)).sum(3)


def backward(
        dy: Tensor, dlast: Tensor | None, last: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None, causal: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, dt, A, B, C, D, dt_bias, initial_state), in the compute dtype."""
    dtype = compute_dtype(x)
    steps = step_sizes(dt, dt_bias, dt_softplus, dtype)
    x_, dy_ = x.to(dtype), dy.to(dtype)
    if causal:
        dx, dsteps, dA, dB, dC, dinitial = _causal_backward(dy_, dlast, x_, steps, A, B, C, initial_state)
    else:
        dx, dsteps, dA, dB, dC, dinitial = _unordered_backward(dy_, dlast, last, x_, steps, A, B, C)
    if dt_softplus:
        dsteps = dsteps * -torch.expm1(-steps)  # the slope of a softplus, by its value
    dD = None
    if D is not None:
        dx = dx + skipped(dy_, D)
        dD = (dy_ * x_).sum((0, 1) if D.ndim == 2 else (0, 1, 3))
    dbias = dsteps.sum((0, 1)) if dt_bias is not None else None
    return dx, dsteps, dA, dB, dC, dD, dbias, dinitial if initial_state is not None else None


def _unordered_backward(
        dy: Tensor, dlast: Tensor | None, last: Tensor, x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor,
) -> tuple[Tensor, ...]:
    rates, groups = A.to(steps.dtype), B.shape[2]
    B_, C_ = (_of_heads(M, x, steps.dtype) for M in (B, C))
    dstate = torch.einsum("blhn,blhp->bhpn", C_, dy)
    if dlast is not None:
        dstate = dstate + dlast.to(dstate.dtype)
    dinput = torch.einsum("blhn,bhpn->blhp", B_, dstate)
    weights = steps * -rates
    dweights = (dinput * x).sum(-1)
    dB = torch.einsum("blhp,bhpn->blhn", x * weights.unsqueeze(-1), dstate)
    dC = torch.einsum("blhp,bhpn->blhn", dy, last.to(dy.dtype))
    return (
        dinput * weights.unsqueeze(-1), dweights * -rates, -(dweights * steps).sum((0, 1)), _of_groups(dB, groups),
        _of_groups(dC, groups), dstate)


def _causal_backward(
        dy: Tensor, dlast: Tensor | None, x: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor,
        initial: Tensor | None,
) -> tuple[Tensor, ...]:
    """With M[t, s] the part of the loss that input s has through output t, the decay of u has all M of s < u <= t."""
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    chunks = _chunks(x, steps, A, B, C)
    walk = _walk(chunks)
    given = _cut(dy, dy.dtype, groups, heads // groups, channels)
    states_in = _entering(chunks, walk, initial)[:, :-1]
    grown = walk.total.exp()

    # the gradient to the states between the chunks: by each chunk's outputs, then backwards over the chunks
    own = torch.einsum("bctgn,bcgkt,bctgkp->bcgkpn", chunks.C, grown, given)
    final = own.new_zeros(own[:, :1].shape) if dlast is None else dlast.to(own.dtype).view(own[:, :1].shape)
    dstates = torch.einsum("bgkzc,bzgkpn->bcgkpn", walk.between, torch.cat([own, final], dim=1))
    dinitial, dstates_out = dstates[:, 0].reshape(batch, heads, channels, states), dstates[:, 1:]

    pairs = torch.einsum("bctgkp,bcsgkp->bcgkts", given, chunks.x) * walk.within * chunks.steps.unsqueeze(-2)
    products = torch.einsum("bctgn,bcsgn->bcgts", chunks.C, chunks.B).unsqueeze(3)
    scaled = chunks.steps * walk.left
    dC_ = torch.einsum("bctgkp,bcgkpn,bcgkt->bctgkn", given, states_in, grown)
    dB_ = torch.einsum("bcsgkp,bcgkpn,bcgks->bcsgkn", chunks.x, dstates_out, scaled)
    dinput = torch.einsum("bcgkts,bctgkp->bcsgkp", products * walk.within, given)
    dinput = dinput + torch.einsum("bcsgn,bcgkpn,bcgks->bcsgkp", chunks.B, dstates_out, walk.left)

    M = (pairs * products).tril(-1)
    through = torch.einsum("bctgkn,bctgn->bcgkt", dC_, chunks.C) + M.sum(-1) - M.sum(-2)
    after = torch.einsum("bcsgkn,bcsgn->bcgks", dB_, chunks.B)
    before = F.pad(after, (1, -1)).cumsum(-1)  # a sum less its last term would be rounding where decays are strong
    around = (states_in * dstates_out).sum((-1, -2)) * grown[..., -1]
    dlogs = through.flip(-1).cumsum(-1).flip(-1) + before + around.unsqueeze(-1)

    dC = dC_.sum(4) + torch.einsum("bcgkts,bcsgn->bctgn", pairs, chunks.B)
    dB = dB_.sum(4) + torch.einsum("bcgkts,bctgn->bcsgn", pairs, chunks.C)
    dsteps = dlogs * chunks.rates + torch.einsum("bcsgkp,bcsgkp->bcgks", dinput, chunks.x)
    dA = (dlogs * chunks.steps).sum((0, 1, 4)).flatten()
    dx = dinput * chunks.steps.movedim(-1, 2).unsqueeze(-1)
    return (
        _uncut(dx, length, heads, channels), _uncut(dsteps.movedim(-1, 2), length, heads), dA,
        _uncut(dB, length, groups, states), _uncut(dC, length, groups, states), dinitial)
