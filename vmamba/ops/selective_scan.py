"""``selective_scan``: the public operator and its registration as ``torch.ops.vmamba.selective_scan``."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _torch_selective, _triton
from ._backend import resolve_backend, saved_states_dtype
from ._grouped import state_blocks
from ._library import LIBRARY, fake_gradients, fit_gradients, implements, in_layout_of, new_like, unpack_gradients
from ._shapes import check_selective_scan, compute_dtype
from .reference import selective_scan_reference

__all__ = ["selective_scan"]


def selective_scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
        delta_bias: Tensor | None = None, delta_softplus: bool = False, initial_state: Tensor | None = None,
        return_last_state: bool = False, *, backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan with the signature known from mamba-ssm.

    For every batch entry, channel and step t, with ``d_t = delta_t + delta_bias`` (through a softplus if asked)::

        h_t = exp(d_t A) h_{t-1} + d_t B_t u_t          y_t = <C_t, h_t> + D u_t,   times silu(z_t) if z is given

    Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv:2312.00752, algorithm 2.

    Args:
        u: Input [B, D, L]; float16, bfloat16, float32 or float64. State and sums are float32 (float64 for float64). A
            transposed [B, L, D] is read as it lies in memory, which is the fastest layout on a GPU; so are ``delta``
            and ``z``, and y has the layout of u.
        delta: Step sizes [B, D, L], before bias and softplus.
        A: Decay rates [D, N], negative for a stable scan.
        B: Input matrix [B, G, N, L], or [B, N, L] for one group; channel d belongs to group ``d // (D / G)``.
        C: Output matrix, shaped as B.
        D: Skip weights [D].
        z: Gate [B, D, L].
        delta_bias: [D], added to ``delta``.
        delta_softplus: Apply a softplus to the step sizes.
        initial_state: [B, D, N]; zeros if None.
        return_last_state: Also return the state after the last step.
        backend: "auto" (Triton for CUDA tensors, else plain torch), or "reference", "torch", "triton" by name. Only
            "reference" can be differentiated twice.

    Returns:
        ``y [B, D, L]`` in the dtype of u; with ``return_last_state`` also ``last_state [B, D, N]``, float32 or float64.

    Raises:
        ValueError: A shape, dtype or device does not fit (the message names the argument and what it needs), or the
            named backend cannot run.
    """
    B, C = (M.unsqueeze(1) if M.ndim == 3 else M for M in (B, C))
    if resolve_backend(backend, u) == "reference":
        check_selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
        y, last_state = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    else:
        y, last_state, _, _ = torch.ops.vmamba.selective_scan(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, backend)
    return (y, last_state) if return_last_state else y


_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? initial_state")
LIBRARY.define(
    f"selective_scan({_TENSORS}, str backend=\"auto\") -> "
    "(Tensor y, Tensor last_state, Tensor states, Tensor ungated)")
LIBRARY.define(
    "selective_scan_backward(Tensor dy, Tensor? dlast_state, Tensor states, Tensor ungated, "
    f"{_TENSORS}, str backend) -> Tensor[]")


@implements("selective_scan")
def _forward(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    run = _triton.selective_scan_forward if resolve_backend(backend, u) == "triton" else _torch_selective.forward
    y, last_state, states, ungated = run(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return in_layout_of(u, y), last_state, states, in_layout_of(u, ungated) if z is not None else ungated


@implements("selective_scan_backward")
def _backward(
        dy: Tensor, dlast_state: Tensor | None, states: Tensor, ungated: Tensor, u: Tensor, delta: Tensor, A: Tensor,
        B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
        initial_state: Tensor | None, backend: str,
) -> list[Tensor | None]:
    run = _triton.selective_scan_backward if resolve_backend(backend, u) == "triton" else _torch_selective.backward
    grads = run(
        dy, dlast_state, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, states, ungated)
    arguments = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return fit_gradients(grads, arguments)


@torch.library.register_fake("vmamba::selective_scan", lib=LIBRARY)
def _forward_fake(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_selective_scan(u, delta, A, B, C, D, z, delta_bias, initial_state)
    batch, channels, length = u.shape
    groups, states = B.shape[1], A.shape[1]
    if resolve_backend(backend, u) == "triton":
        saved = _triton.selective_scan_states_shape(u, A, B)
    else:
        saved = (batch, groups, state_blocks(length, states), states, channels // groups)
    return (
        new_like(u), u.new_empty((batch, channels, states), dtype=compute_dtype(u)),
        u.new_empty(saved, dtype=saved_states_dtype(u, backend)),
        new_like(u) if z is not None else u.new_empty(0))


@torch.library.register_fake("vmamba::selective_scan_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, dlast_state: Tensor | None, states: Tensor, ungated: Tensor, u: Tensor, delta: Tensor, A: Tensor,
        B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
        initial_state: Tensor | None, backend: str,
) -> list[Tensor]:
    return fake_gradients((u, delta, A, B, C, D, z, delta_bias, initial_state))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *arguments, ctx.backend = inputs
    ctx.delta_softplus = arguments.pop(8)
    ctx.save_for_backward(*output[2:], *arguments)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, dlast_state: Tensor | None, *_: Tensor | None) -> tuple:
    states, ungated, *arguments = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(arguments[0])
    grads = torch.ops.vmamba.selective_scan_backward(
        dy, dlast_state, states, ungated, *arguments[:8], ctx.delta_softplus, arguments[8], ctx.backend)
    *grads, dinitial = unpack_gradients(grads, arguments)
    return (*grads, None, dinitial, None)


torch.library.register_autograd("vmamba::selective_scan", _autograd, setup_context=_setup_context, lib=LIBRARY)
