"""``ssd_scan``: the scan of Mamba-2, and its registration as ``torch.ops.vmamba.ssd_scan``.

Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
arXiv:2405.21060. With one decay rate for all channels of a head, the scan is a product with a matrix of L x L weights,
which chunks make cheap.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _torch_ssd, _triton
from ._backend import resolve_backend
from ._library import LIBRARY, fake_gradients, fit_gradients, implements, unpack_gradients
from ._shapes import check_tensor, compute_dtype
from ._torch_ssd import skipped, step_sizes

__all__ = ["ssd_scan"]


def ssd_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        dt_bias: Tensor | None = None, dt_softplus: bool = False, initial_state: Tensor | None = None,
        return_last_state: bool = False, causal: bool = True, *, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space scan with one decay rate for each head.

    For every image, head and step t, with ``d_t = dt_t + dt_bias`` (through a softplus if asked)::

        S_t = exp(d_t A) S_{t-1} + d_t x_t B_t^T          y_t = S_t C_t + D x_t

    Without an order (``causal=False``) every token adds to one state, from which every token reads, as in VSSD (Shi et
    al., arXiv:2407.18559, section 3.2)::

        S = sum_t (-d_t A) x_t B_t^T                      y_t = S C_t + D x_t

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
        initial_state: [B, H, P, N]; zeros if None. Without an order it is added to the state.
        return_last_state: Also return the state after the last step, or without an order the state.
        causal: Scan from the first token to the last.
        backend: "auto" (Triton for CUDA tensors where P times N is at most 16384, else plain torch), or "reference"
            (step by step), "torch" (products within and between chunks of steps), "triton" by name. Only "reference"
            can be differentiated twice.

    Returns:
        ``y [B, L, H, P]`` in the dtype of x; with ``return_last_state`` also ``last_state [B, H, P, N]``, float32 or
        float64.

    Raises:
        ValueError: A shape, dtype or device does not fit (the message names the argument and what it needs), or the
            named backend cannot run.
    """
    if resolve_backend(backend, x) == "reference":
        y, last_state = ssd_scan_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal)
    else:
        y, last_state = torch.ops.vmamba.ssd_scan(
            x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal, backend)
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


def ssd_scan_reference(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None,
        dt_bias: Tensor | None = None, dt_softplus: bool = False, initial_state: Tensor | None = None,
        causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step after another; arguments as in :func:`ssd_scan`. Returns y and the last state."""
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    dtype = compute_dtype(x)
    batch, length, heads, channels = x.shape
    repeats = heads // B.shape[2]
    x_, dt_ = x.to(dtype), step_sizes(dt, dt_bias, dt_softplus, dtype)
    B_, C_ = (M.to(dtype).repeat_interleave(repeats, dim=2) for M in (B, C))  # [B, L, H, N]
    state = x_.new_zeros(batch, heads, channels, B.shape[3]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(length):
        drive = (dt_[:, t].unsqueeze(-1) * x_[:, t]).unsqueeze(-1) * B_[:, t].unsqueeze(2)
        if causal:
            state = torch.exp(dt_[:, t] * A.to(dtype)).view(batch, heads, 1, 1) * state + drive
            outputs.append((state * C_[:, t].unsqueeze(2)).sum(-1))
        else:
            state = state - A.to(dtype).view(heads, 1, 1) * drive
    if not causal:
        outputs = [(state * C_[:, t].unsqueeze(2)).sum(-1) for t in range(length)]
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + skipped(x_, D)
    return y.to(x.dtype), state


def ssd_as_ss2d(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """The same scan, in order and with softplus, as one of the other kind, whose channels have their head's step size.

    Returns:
        x, proj, dt_weight, dt_bias, A_log and D_skip as :func:`vmamba.ops.ss2d_scan` takes them, for the order "uni" in
        each of G directions with H / G * P channels.
    """
    (batch, length, groups, states), channels = B.shape, x.shape[3]
    heads = x.shape[2] // groups

    def each(t: Tensor) -> Tensor:
        """``[H (, P)] -> [G, H / G * P]``."""
        return (t if t.ndim == 2 else t.unsqueeze(1).expand(-1, channels)).reshape(groups, heads * channels)

    weight = torch.eye(heads, dtype=x.dtype, device=x.device).repeat_interleave(channels, 0).expand(groups, -1, -1)
    proj = torch.cat([dt.reshape(batch, length, groups, heads), B, C], dim=-1)
    return (x.reshape(batch, length, groups, heads * channels), proj, weight,
            None if dt_bias is None else each(dt_bias), each((-A).log()).unsqueeze(-1).expand(-1, -1, states),
            None if D is None else each(D))


def _runs_triton(backend: str, x: Tensor, B: Tensor) -> bool:
    """Whether the kernels run: "auto" leaves to plain torch what is too large for them."""
    return resolve_backend(backend, x) == "triton" and (backend == "triton" or _triton.ssd_fits(x, B))


_TENSORS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, bool dt_softplus, "
    "Tensor? initial_state")
LIBRARY.define(
    f"ssd_scan({_TENSORS}, bool causal=True, str backend=\"auto\") -> (Tensor y, Tensor last_state)")
LIBRARY.define(
    f"ssd_scan_backward(Tensor dy, Tensor? dlast_state, Tensor last_state, {_TENSORS}, bool causal, str backend) "
    "-> Tensor[]")


@implements("ssd_scan")
def _forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None, causal: bool = True, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    run = _triton.ssd_forward if _runs_triton(backend, x, B) else _torch_ssd.forward
    y, last_state = run(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal)
    return y.contiguous(), last_state


@implements("ssd_scan_backward")
def _backward(
        dy: Tensor, dlast_state: Tensor | None, last_state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor,
        C: Tensor, D: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None,
        causal: bool, backend: str,
) -> list[Tensor | None]:
    run = _triton.ssd_backward if _runs_triton(backend, x, B) else _torch_ssd.backward
    grads = run(
        dy, dlast_state, last_state, x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal)
    return fit_gradients(grads, (x, dt, A, B, C, D, dt_bias, initial_state))


@torch.library.register_fake("vmamba::ssd_scan", lib=LIBRARY)
def _forward_fake(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None, causal: bool = True, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    batch, _, heads, channels = x.shape
    return x.new_empty(x.shape), x.new_empty((batch, heads, channels, B.shape[-1]), dtype=compute_dtype(x))


@torch.library.register_fake("vmamba::ssd_scan_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, dlast_state: Tensor | None, last_state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor,
        C: Tensor, D: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None,
        causal: bool, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, dt, A, B, C, D, dt_bias, initial_state))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *arguments, ctx.causal, ctx.backend = inputs
    ctx.dt_softplus = arguments.pop(7)
    ctx.save_for_backward(output[1], *arguments)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None) -> tuple:
    last_state, *arguments = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(arguments[0])
    grads = torch.ops.vmamba.ssd_scan_backward(
        dy, dlast_state, last_state, *arguments[:7], ctx.dt_softplus, arguments[7], ctx.causal, ctx.backend)
    *grads, dinitial = unpack_gradients(grads, arguments)
    return (*grads, None, dinitial, None, None)


torch.library.register_autograd("vmamba::ssd_scan", _autograd, setup_context=_setup_context, lib=LIBRARY)
