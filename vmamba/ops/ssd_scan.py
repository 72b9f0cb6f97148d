"""``ssd_scan``: the scan of Mamba-2, and its registration as ``torch.ops.vmamba.ssd_scan``.

Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
arXiv:2405.21060. With one decay rate for all channels of a head, the scan is a product with a matrix of L x L weights,
which chunks make cheap.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._library import LIBRARY
from ._shapes import check_tensor, compute_dtype

__all__ = ["ssd_scan"]

BACKENDS = ("auto", "reference", "torch")
CHUNK = 64  # steps; the work within chunks grows with it, that between them falls


def ssd_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        dt_bias: Tensor | None = None, dt_softplus: bool = False, initial_state: Tensor | None = None,
        return_last_state: bool = False, *, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space scan with one decay rate for each head.

    For every image, head and step t, with ``d_t = dt_t + dt_bias`` (through a softplus if asked)::

        S_t = exp(d_t A) S_{t-1} + d_t x_t B_t^T          y_t = S_t C_t + D x_t

    Args:
        x: Input [B, L, H, P], P channels for each head; float16, bfloat16, float32 or float64. State and sums are
            float32 (float64 for float64).
        dt: Step sizes [B, L, H], before bias and softplus.
        A: Decay rates [H], negative for a stable scan.
        B: Input matrix [B, L, G, N]; head h belongs to group ``h // (H / G)``.
        C: Output matrix, shaped as B.
        D: Skip weights, [H] or, for each channel, [H, P].
        dt_bias: [H], added to ``dt``.
        dt_softplus: Apply a softplus to the step sizes.
        initial_state: [B, H, P, N]; zeros if None.
        return_last_state: Also return the state after the last step.
        backend: "auto" or "torch" (products within and between chunks of steps), or "reference" (step by step).

    Returns:
        ``y [B, L, H, P]`` in the dtype of x; with ``return_last_state`` also ``last_state [B, H, P, N]``, float32 or
        float64.

    Raises:
        ValueError: A shape, dtype or device does not fit (the message names the argument and what it needs), or there
            is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, but needs one of {', '.join(map(repr, BACKENDS))}")
    run = ssd_scan_reference if backend == "reference" else torch.ops.vmamba.ssd_scan
    y, last_state = run(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state)
    return (y, last_state) if return_last_state else y


def _check(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        initial_state: Tensor | None,
) -> None:
    check_tensor("x", x, (None,) * 4, "[B, L, H, P]", x)
    batch, length, heads, channels = x.shape
    check_tensor("dt", dt, (batch, length, heads), "[B, L, H]", x)
    check_tensor("A", A, (heads,), "[H]", x)
    check_tensor("B", B, (batch, length, None, None), "[B, L, G, N]", x)
    groups, states = B.shape[2:]
    if groups < 1 or heads % groups:
        raise ValueError(f"B has {groups} groups, but needs a number G that divides H = {heads}")
    check_tensor("C", C, (batch, length, groups, states), "[B, L, G, N]", x)
    if D is not None:
        check_tensor("D", D, (heads, channels)[:D.ndim], "[H] or [H, P]", x)
    if dt_bias is not None:
        check_tensor("dt_bias", dt_bias, (heads,), "[H]", x)
    if initial_state is not None:
        check_tensor("initial_state", initial_state, (batch, heads, channels, states), "[B, H, P, N]", x)
    if length < 1 or states < 1:
        raise ValueError(f"x needs L >= 1 tokens and B needs N >= 1 states, got L = {length}, N = {states}")


def _steps(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dtype: torch.dtype) -> Tensor:
    """Step sizes ``[B, L, H]`` as they are used."""
    dt = dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias.to(dtype)
    return F.softplus(dt) if dt_softplus else dt


def _skip(x: Tensor, D: Tensor) -> Tensor:
    return x * (D.to(x.dtype) if D.ndim == 2 else D.to(x.dtype).unsqueeze(-1))


def ssd_scan_reference(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        dt_bias: Tensor | None = None, dt_softplus: bool = False, initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step after another; arguments as in :func:`ssd_scan`. Returns y and the last state."""
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    dtype = compute_dtype(x)
    batch, length, heads, channels = x.shape
    repeats = heads // B.shape[2]
    x_, dt_ = x.to(dtype), _steps(dt, dt_bias, dt_softplus, dtype)
    B_, C_ = (M.to(dtype).repeat_interleave(repeats, dim=2) for M in (B, C))  # [B, L, H, N]
    state = x_.new_zeros(batch, heads, channels, B.shape[3]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(length):
        drive = (dt_[:, t].unsqueeze(-1) * x_[:, t]).unsqueeze(-1) * B_[:, t].unsqueeze(2)
        state = torch.exp(dt_[:, t] * A.to(dtype)).view(batch, heads, 1, 1) * state + drive
        outputs.append((state * C_[:, t].unsqueeze(2)).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + _skip(x_, D)
    return y.to(x.dtype), state


def _decay(logs: Tensor) -> Tensor:
    """Decay from the end of step s to that of step t, 0 where t < s: ``[..., T]`` logarithms to ``[..., T, T]``."""
    total = logs.cumsum(-1)
    later = torch.ones(logs.shape[-1], logs.shape[-1], dtype=torch.bool, device=logs.device).tril()
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(~later, float("-inf")).exp()


# Composite: made of differentiable operators, so it needs neither a gradient nor a fake implementation of its own.
LIBRARY.define(
    "ssd_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, bool dt_softplus, "
    "Tensor? initial_state) -> (Tensor y, Tensor last_state)")


@torch.library.impl(LIBRARY, "ssd_scan", "CompositeImplicitAutograd")
def _forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Arxiv:2405.21060, listing 1: chunks by a masked product, then what earlier chunks left to them."""
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    dtype = compute_dtype(x)
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    chunks, size = (length + CHUNK - 1) // CHUNK, CHUNK

    def in_chunks(t: Tensor, *tail: int) -> Tensor:
        """``[B, L, ...]`` to ``[B, chunks, size, *tail]``; added steps are of size zero and so change nothing."""
        t = F.pad(t.to(dtype).flatten(2), (0, 0, 0, chunks * size - length))
        return t.reshape(batch, chunks, size, *tail)

    shape = (groups, heads // groups)
    dt_ = in_chunks(_steps(dt, dt_bias, dt_softplus, dtype), *shape)
    logs = (dt_ * A.to(dtype).view(shape)).movedim(2, -1)  # [B, chunks, G, H / G, size]
    driven = in_chunks(x, *shape, channels) * dt_.unsqueeze(-1)
    B_, C_ = in_chunks(B, groups, states), in_chunks(C, groups, states)

    weights = torch.einsum("bctgn,bcsgn->bcgts", C_, B_).unsqueeze(3) * _decay(logs)
    y = torch.einsum("bcgkts,bcsgkp->bctgkp", weights, driven)

    total = logs.cumsum(-1)  # of a chunk, up to each of its steps
    left = torch.exp(total[..., -1:] - total)  # what is left of each step at the end of its chunk
    ends = torch.einsum("bcsgn,bcgks,bcsgkp->bcgkpn", B_, left, driven)
    first = (ends.new_zeros(batch, 1, *shape, channels, states) if initial_state is None
             else initial_state.to(dtype).view(batch, 1, *shape, channels, states))
    between = _decay(F.pad(total[..., -1], (0, 0, 0, 0, 1, 0)).movedim(1, -1))  # [B, G, H / G, chunks + 1, chunks + 1]
    carried = torch.einsum("bgkzc,bcgkpn->bzgkpn", between, torch.cat([first, ends], dim=1))
    y = y + torch.einsum("bctgn,bcgkpn,bcgkt->bctgkp", C_, carried[:, :-1], total.exp())

    # negative padding, because a slice cannot be exported for dynamic lengths
    y = F.pad(y.reshape(batch, chunks * size, heads, channels), (0, 0, 0, 0, 0, length - chunks * size))
    if D is not None:
        y = y + _skip(x.to(dtype), D)
    return y.to(x.dtype), carried[:, -1].reshape(batch, heads, channels, states)
