"""``ss2d_scan_norm``: scan, merge, LayerNorm and gate in one operator, ``torch.ops.vmamba.ss2d_scan_norm``."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import ScanOrder

from . import _torch_ss2d, _triton
from ._backend import resolve_backend
from ._library import LIBRARY, fake_gradients, pack_gradients, unpack_gradients
from ._shapes import check_ss2d_scan, check_tensor, compute_dtype
from .reference import ss2d_scan_reference
from .ss2d_scan import order_arguments, saved_states_shape

__all__ = ["ss2d_scan_norm"]


def ss2d_scan_norm(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: ScanOrder, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None = None, *, eps: float = 1e-5,
        backend: str = "auto",
) -> Tensor:
    """``LayerNorm(ss2d_scan(x, ...)) * silu(gate)``, normalised while the directions are added.

    The step after the scan in VMamba (Liu et al., arXiv:2401.10166, figure 3); the norm is over channels (Ba et al.,
    arXiv:1607.06450).

    Args:
        x: First of the arguments of :func:`vmamba.ops.ss2d_scan`, up to ``order``; its sum over directions is taken.
        proj: As there.
        dt_weight: As there.
        dt_bias: As there.
        A_log: As there.
        D_skip: As there.
        order: As there.
        norm_weight: [D].
        norm_bias: [D].
        gate: [B, L, D] before its SiLU, or None for no gate.
        eps: Added to the variance.
        backend: As there.

    Returns:
        [B, L, D] in the dtype of x.

    Raises:
        ValueError: As :func:`vmamba.ops.ss2d_scan`.
    """
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip)
    walk = order_arguments(order, x, dt_weight)  # refuses an order for other directions or tokens
    if resolve_backend(backend, x) == "reference":
        _check(*arguments, walk[0], 1, order.num_tokens, order.index, norm_weight, norm_bias, gate)
        wide = x.to(compute_dtype(x))  # the sum is not rounded before the norm
        merged = ss2d_scan_reference(wide, proj, dt_weight, dt_bias, A_log, D_skip, order)
        y = F.layer_norm(merged, (x.shape[2],), norm_weight.to(merged.dtype), norm_bias.to(merged.dtype), eps)
        return (y if gate is None else y * F.silu(gate.to(y.dtype))).to(x.dtype)
    return torch.ops.vmamba.ss2d_scan_norm(
        *arguments, *walk, norm_weight, norm_bias, gate, eps, backend)[0]


def _check(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None,
) -> None:
    check_tensor("x", x, (None, None, None), "[B, L, D]", x)
    check_ss2d_scan(x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    channels = x.shape[2]
    check_tensor("norm_weight", norm_weight, (channels,), "[D]", x)
    check_tensor("norm_bias", norm_bias, (channels,), "[D]", x)
    if gate is not None:
        check_tensor("gate", gate, x.shape, "[B, L, D]", x)


_TENSORS = (
    "Tensor x, Tensor proj, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor? D_skip, "
    "str order, SymInt height, SymInt width, Tensor? index, Tensor norm_weight, Tensor norm_bias, Tensor? gate")
LIBRARY.define(
    f"ss2d_scan_norm({_TENSORS}, float eps=1e-05, str backend=\"auto\") -> "
    "(Tensor y, Tensor merged, Tensor mean, Tensor rstd, Tensor states)")
LIBRARY.define(
    "ss2d_scan_norm_backward(Tensor dy, Tensor merged, Tensor mean, Tensor rstd, Tensor states, "
    f"{_TENSORS}, str backend) -> Tensor[]")


@torch.library.impl(LIBRARY, "ss2d_scan_norm", "CompositeExplicitAutograd")
def _forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float = 1e-5, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(
        x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, norm_weight, norm_bias, gate)
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    if resolve_backend(backend, x) == "triton":
        return _triton.ss2d_norm_forward(*arguments, norm_weight, norm_bias, gate, eps)
    dtype = compute_dtype(x)
    merged, states = _torch_ss2d.forward(*arguments, merge=True, out_dtype=dtype)
    y, mean, rstd = torch.native_layer_norm(
        merged, (x.shape[2],), norm_weight.to(dtype), norm_bias.to(dtype), eps)
    if gate is not None:
        y = y * F.silu(gate.to(dtype))
    return y.to(x.dtype), merged, mean.squeeze(-1), rstd.squeeze(-1), states


@torch.library.impl(LIBRARY, "ss2d_scan_norm_backward", "CompositeExplicitAutograd")
def _backward(
        dy: Tensor, merged: Tensor, mean: Tensor, rstd: Tensor, states: Tensor, x: Tensor, proj: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, order: str, height: int,
        width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, backend: str,
) -> list[Tensor]:
    scan = (x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    if resolve_backend(backend, x) == "triton":
        grads = _triton.ss2d_norm_backward(dy, merged, mean, rstd, *scan, norm_weight, norm_bias, gate, states)
    else:
        dmerged, *norm_grads = _norm_backward(dy, merged, mean, rstd, norm_weight, norm_bias, gate)
        grads = (*_torch_ss2d.backward(dmerged, *scan, True, states), *norm_grads)
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias, gate)
    return pack_gradients(grads, arguments)


def _norm_backward(
        dy: Tensor, merged: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of the merged sum, the norm's weight and bias, and the gate."""
    dtype = merged.dtype
    dy, weight, bias, dgate = dy.to(dtype), weight.to(dtype), bias.to(dtype), None
    mean, rstd = mean.unsqueeze(-1), rstd.unsqueeze(-1)
    if gate is not None:
        z = gate.to(dtype)
        sigmoid = torch.sigmoid(z)
        norm = (merged - mean) * rstd * weight + bias
        dgate = dy * norm * sigmoid * (1 + z * (1 - sigmoid))
        dy = dy * z * sigmoid
    dmerged, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.contiguous(), merged, (merged.shape[2],), mean, rstd, weight, bias, [True, True, True])
    return dmerged, dweight, dbias, dgate


@torch.library.register_fake("vmamba::ss2d_scan_norm", lib=LIBRARY)
def _forward_fake(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float = 1e-5, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(
        x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, norm_weight, norm_bias, gate)
    dtype = compute_dtype(x)
    half = resolve_backend(backend, x) == "triton" and x.dtype == torch.bfloat16
    states = saved_states_shape(x, A_log, order, height, width, index, backend)
    return (
        x.new_empty(x.shape), x.new_empty(x.shape, dtype=x.dtype if half else dtype),
        x.new_empty(x.shape[:2], dtype=dtype), x.new_empty(x.shape[:2], dtype=dtype),
        x.new_empty(states, dtype=dtype))


@torch.library.register_fake("vmamba::ss2d_scan_norm_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, merged: Tensor, mean: Tensor, rstd: Tensor, states: Tensor, x: Tensor, proj: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, order: str, height: int,
        width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, proj, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias, gate))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *scan, ctx.order, ctx.height, ctx.width, index, norm_weight, norm_bias, gate, _, ctx.backend = inputs
    ctx.save_for_backward(*output[1:], index, *scan, norm_weight, norm_bias, gate)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 15
    merged, mean, rstd, states, index, *tensors = ctx.saved_tensors
    grads = torch.ops.vmamba.ss2d_scan_norm_backward(
        dy, merged, mean, rstd, states, *tensors[:6], ctx.order, ctx.height, ctx.width, index, *tensors[6:],
        ctx.backend)
    present = unpack_gradients(grads, tensors)
    return (*present[:6], None, None, None, None, *present[6:], None, None)


torch.library.register_autograd("vmamba::ss2d_scan_norm", _autograd, setup_context=_setup_context, lib=LIBRARY)
