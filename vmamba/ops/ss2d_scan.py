"""``ss2d_scan``: the scan of images, its public function and its registration as ``torch.ops.vmamba.ss2d_scan``."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vmamba.scans import ScanOrder, scan_length, scan_order, scan_routes

from . import _torch_ss2d, _triton
from ._backend import resolve_backend, saved_states_dtype
from ._grouped import state_blocks
from ._library import LIBRARY, fake_gradients, fit_gradients, implements, unpack_gradients
from ._shapes import check_ss2d_scan, ss2d_output_dtype
from .reference import ss2d_scan_reference

__all__ = ["ss2d_scan"]


def ss2d_scan(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: ScanOrder, *, merge: str | None = "sum", backend: str = "auto",
) -> Tensor:
    """Selective scans of an image in K directions, without a copy of the image or of the step sizes per direction.

    For direction k, whose step t visits token ``p = order.index[k, t]``, with factors, B and C read from
    ``proj[:, p, k]``::

        d_t = softplus(dt_weight[k] factors + dt_bias[k])          A = -exp(A_log[k])
        h_t = exp(d_t A) h_{t-1} + d_t B x_p                       y_k[p] = <C, h_t> + D_skip[k] x_p

    A padding slot of the order is a token of zeros that takes part: the state decays there. Tokens that a direction
    never visits get zero from it. Liu et al., "VMamba", arXiv:2401.10166, section 4.2 (SS2D).

    Args:
        x: Activations [B, L, D], channels last, tokens in row-major order, or [B, L, K, D] where each direction has
            its own; float16, bfloat16, float32 or float64. State and sums are float32 (float64 for float64).
        proj: [B, L, K, R + 2N] in natural order, each row (delta factors R, B N, C N). With N = 1 and x [B, L, D], C
            may be left out ([B, L, K, R + 1]); the output is then the state itself plus the skip.
        dt_weight: [K, D, R].
        dt_bias: [K, D] or None.
        A_log: [K, D, N].
        D_skip: [K, D] or None.
        order: Order with K directions over L tokens.
        merge: "sum" adds the directions; None keeps them apart.
        backend: "auto" (Triton for CUDA tensors, else plain torch), or "reference", "torch", "triton" by name. Only
            "reference" can be differentiated twice.

    Returns:
        ``[B, L, D]``, or ``[B, K, L, D]`` with ``merge=None``, in natural order; in the dtype of x, but float32 for
        float16, whose range a sum over directions can exceed.

    Raises:
        ValueError: A shape, dtype, device or the order does not fit (the message names the argument and what it
            needs), or the named backend cannot run.
    """
    if merge not in ("sum", None):
        raise ValueError(f"merge is {merge!r}, but needs 'sum' or None")
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip)
    name, height, width, index = order_arguments(order, x, dt_weight)
    if resolve_backend(backend, x) == "reference":
        check_ss2d_scan(*arguments, name, 1, order.num_tokens, order.index)
        return ss2d_scan_reference(*arguments, order, merge == "sum")
    return torch.ops.vmamba.ss2d_scan(*arguments, name, height, width, index, merge == "sum", backend)[0]


def order_arguments(order: ScanOrder, x: Tensor, dt_weight: Tensor) -> tuple[str, int, int, Tensor | None]:
    """How operators take ``order``: (name, height, width, None) for a registered one, else by its table.

    Raises:
        ValueError: The order is for other numbers of directions or tokens.
    """
    if dt_weight.ndim == 3 and order.num_directions != dt_weight.shape[0]:
        raise ValueError(f"order has {order.num_directions} directions, but dt_weight has K = {dt_weight.shape[0]}")
    if x.ndim in (3, 4) and order.num_tokens != x.shape[1]:
        raise ValueError(
            f"order is for {order.num_tokens} tokens (grid {'x'.join(map(str, order.size))}), "
            f"but x has L = {x.shape[1]}")
    if _is_registered(order):
        return order.name, order.size[0], order.size[1], None
    return "", 1, order.num_tokens, order.index.to(x.device)


def _is_registered(order: ScanOrder) -> bool:
    """Whether ``order`` is the registered one of its name, so that operators may walk it without its table."""
    if len(order.size) != 2:
        return False
    try:
        return scan_order(order.name, order.size, order.num_directions, order.index.device) is order
    except ValueError:
        return False


_TENSORS = (
    "Tensor x, Tensor proj, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor? D_skip, "
    "str order, SymInt height, SymInt width, Tensor? index, bool merge")
LIBRARY.define(f"ss2d_scan({_TENSORS}, str backend=\"auto\") -> (Tensor y, Tensor states)")
LIBRARY.define(f"ss2d_scan_backward(Tensor dy, Tensor states, {_TENSORS}, str backend) -> Tensor[]")


@implements("ss2d_scan")
def _forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    check_ss2d_scan(x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    run = _triton.ss2d_forward if resolve_backend(backend, x) == "triton" else _torch_ss2d.forward
    return run(x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, merge)


@implements("ss2d_scan_backward")
def _backward(
        dy: Tensor, states: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None,
        A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        backend: str,
) -> list[Tensor | None]:
    run = _triton.ss2d_backward if resolve_backend(backend, x) == "triton" else _torch_ss2d.backward
    grads = run(dy, x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, merge, states)
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip)
    return fit_gradients(grads, arguments)


@torch.library.register_fake("vmamba::ss2d_scan", lib=LIBRARY)
def _forward_fake(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    check_ss2d_scan(x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    batch, length, channels = x.shape[0], x.shape[1], x.shape[-1]
    shape = (batch, length, channels) if merge else (batch, A_log.shape[0], length, channels)
    states = saved_states_shape(x, A_log, order, height, width, index, backend)
    dtype = saved_states_dtype(x, backend)
    return x.new_empty(shape, dtype=ss2d_output_dtype(x)), x.new_empty(states, dtype=dtype)


def saved_states_shape(
        x: Tensor, A_log: Tensor, order: str, height: int, width: int, index: Tensor | None, backend: str,
) -> tuple[int, ...]:
    """Shape of the states that the forward saves, for the fake implementations."""
    batch, channels = x.shape[0], x.shape[-1]
    directions, _, states = A_log.shape
    if index is None:
        scan_routes(order, directions)  # a wrong number of directions fails here
    steps = scan_length(order, height, width) if index is None else index.shape[1]
    if resolve_backend(backend, x) == "triton":
        return _triton.ss2d_states_shape(x, A_log, steps)
    return batch, directions, state_blocks(steps, states), states, channels


@torch.library.register_fake("vmamba::ss2d_scan_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, states: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None,
        A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        backend: str,
) -> list[Tensor]:
    return fake_gradients((x, proj, dt_weight, dt_bias, A_log, D_skip))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, order, height, width, index, merge, backend = inputs
    ctx.save_for_backward(output[1], *tensors, index)
    ctx.order, ctx.height, ctx.width, ctx.merge, ctx.backend = order, height, width, merge, backend
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple:
    states, *tensors, index = ctx.saved_tensors
    if dy is None:
        return (None,) * 12
    grads = torch.ops.vmamba.ss2d_scan_backward(
        dy, states, *tensors, ctx.order, ctx.height, ctx.width, index, ctx.merge, ctx.backend)
    return (*unpack_gradients(grads, tensors), None, None, None, None, None, None)


torch.library.register_autograd("vmamba::ss2d_scan", _autograd, setup_context=_setup_context, lib=LIBRARY)
