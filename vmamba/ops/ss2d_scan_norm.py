"""``ss2d_scan_norm``: scan, merge, LayerNorm and gate in one operator, ``torch.ops.vmamba.ss2d_scan_norm``."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import ScanOrder

from . import _torch_ss2d, _triton
from ._backend import resolve_backend, saved_states_dtype
from ._library import LIBRARY, direct, fake_gradients, fit_gradients, implements, shortcut, unpack_gradients
from ._shapes import check_ss2d_scan, check_tensor, compute_dtype
from .reference import ss2d_scan_norm_reference
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
        return ss2d_scan_norm_reference(*arguments, order, norm_weight, norm_bias, gate, eps)
    return ss2d_scan_norm_call(*arguments, *walk, norm_weight, norm_bias, gate, eps, backend)


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
LIBRARY.define(f"ss2d_scan_norm({_TENSORS}, float eps=1e-05, str backend=\"auto\") -> Tensor")
LIBRARY.define(
    f"ss2d_scan_norm_saving({_TENSORS}, float eps, str backend, bool save) -> "
    "(Tensor y, Tensor merged, Tensor states)")
LIBRARY.define(
    f"ss2d_scan_norm_backward(Tensor dy, Tensor merged, Tensor states, {_TENSORS}, float eps, str backend) -> "
    "Tensor[]")


@torch.library.impl(LIBRARY, "ss2d_scan_norm", "CompositeImplicitAutograd")
def _choose(*arguments: Any) -> Tensor:
    """Save for a backward only where one can follow."""
    return torch.ops.vmamba.ss2d_scan_norm_saving(
        *arguments, *(1e-5, "auto")[len(arguments) - 13:], torch.is_grad_enabled())[0]


@implements("ss2d_scan_norm_saving")
def _forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float, backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    if resolve_backend(backend, x) == "triton":     # the kernels check what they are given
        return _triton.ss2d_norm_forward(*arguments, norm_weight, norm_bias, gate, eps, save)
    _check(*arguments, norm_weight, norm_bias, gate)
    dtype = compute_dtype(x)
    merged, states = _torch_ss2d.forward(*arguments, merge=True, out_dtype=dtype)
    y = F.layer_norm(merged, (x.shape[2],), norm_weight.to(dtype), norm_bias.to(dtype), eps)
    if gate is not None:
        y = y * F.silu(gate.to(dtype))
    return y.to(x.dtype), merged, states


@implements("ss2d_scan_norm_backward")
def _backward(
        dy: Tensor, merged: Tensor, states: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor,
        dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int,
        index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, eps: float, backend: str,
) -> list[Tensor | None]:
    scan = (x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    grads = gradients(dy, merged, states, *scan, norm_weight, norm_bias, gate, eps, backend, None)
    arguments = (x, proj, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias, gate)
    return fit_gradients(grads, arguments)


def gradients(
        dy: Tensor, merged: Tensor, states: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor,
        dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int,
        index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, eps: float, backend: str,
        sums: Any,
) -> tuple[Tensor | None, ...]:
    """Before they are brought to their arguments' dtypes; those to parameters are there when ``sums`` have run."""
    scan = (x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index)
    if resolve_backend(backend, x) == "triton":
        return _triton.ss2d_norm_backward(dy, merged, *scan, norm_weight, norm_bias, gate, eps, states, sums)
    dmerged, *norm_grads = _norm_backward(dy, merged, norm_weight, norm_bias, gate, eps)
    return (*_torch_ss2d.backward(dmerged, *scan, True, states), *norm_grads)


def _norm_backward(
        dy: Tensor, merged: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of the merged sum, the norm's weight and bias, and the gate."""
    dtype = merged.dtype
    dy, weight, bias, dgate = dy.to(dtype), weight.to(dtype), bias.to(dtype), None
    norm, mean, rstd = torch.native_layer_norm(merged, (merged.shape[2],), weight, bias, eps)
    if gate is not None:
        z = gate.to(dtype)
        sigmoid = torch.sigmoid(z)
        dgate = dy * norm * sigmoid * (1 + z * (1 - sigmoid))
        dy = dy * z * sigmoid
    dmerged, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.contiguous(), merged, (merged.shape[2],), mean, rstd, weight, bias, [True, True, True])
    return dmerged, dweight, dbias, dgate


@torch.library.register_fake("vmamba::ss2d_scan_norm_saving", lib=LIBRARY)
def _forward_fake(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float, backend: str, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(
        x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, norm_weight, norm_bias, gate)
    states = saved_states_shape(x, A_log, order, height, width, index, backend)
    dropped = resolve_backend(backend, x) == "triton" and not save
    dtype = saved_states_dtype(x, backend)      # of the sum over directions as well
    return (
        x.new_empty(x.shape), x.new_empty(0 if dropped else x.shape, dtype=dtype),
        x.new_empty(0 if dropped else states, dtype=dtype))


@torch.library.register_fake("vmamba::ss2d_scan_norm_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, merged: Tensor, states: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor,
        dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int,
        index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, eps: float, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, proj, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias, gate))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *scan, ctx.order, ctx.height, ctx.width, index, norm_weight, norm_bias, gate, ctx.eps, ctx.backend, save = inputs
    if not save:
        raise RuntimeError("ss2d_scan_norm_saving was called with save=False, but a gradient is wanted")
    ctx.save_for_backward(*output[1:], index, *scan, norm_weight, norm_bias, gate)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 16
    merged, states, index, *tensors = ctx.saved_tensors
    grads = _differentiate(
        dy, merged, states, *tensors[:6], ctx.order, ctx.height, ctx.width, index, *tensors[6:], ctx.eps, ctx.backend)
    present = unpack_gradients(grads, tensors)
    return (*present[:6], None, None, None, None, *present[6:], None, None, None)


_differentiate = direct("ss2d_scan_norm_backward", _backward)
torch.library.register_autograd(
    "vmamba::ss2d_scan_norm_saving", _autograd, setup_context=_setup_context, lib=LIBRARY)
_saving = shortcut("ss2d_scan_norm_saving", _forward, _setup_context, _autograd, results=1)


def ss2d_scan_norm_call(*arguments: Any) -> Tensor:
    """``torch.ops.vmamba.ss2d_scan_norm``, all of whose arguments have to be given, by way of :func:`shortcut`."""
    return _saving(*arguments, torch.is_grad_enabled())[0]
