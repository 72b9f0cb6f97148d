"""``add_layer_norm``: where a residual branch ends and the next begins, ``torch.ops.vmamba.add_layer_norm``."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _triton
from ._backend import resolve_backend
from ._library import LIBRARY, cast_under_autocast, direct, fit_gradients, implements, shortcut
from ._shapes import check_tensor, compute_dtype

__all__ = ["add_layer_norm"]


def add_layer_norm(
        x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, *, scale: Tensor | None = None,
        eps: float = 1e-5, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``x + scale * branch`` and its LayerNorm over channels (Ba et al., arXiv:1607.06450, equation 4), in one pass.

    Under autocast, x and branch are taken in autocast's dtype, and so are the results; statistics are float32.

    Args:
        x: [B, ..., D] residual stream.
        branch: The same shape and dtype; None for nothing, where the sum is x.
        weight: [D].
        bias: [D].
        scale: [B] float32 factor of each image's branch, such as stochastic depth's; None for 1.
        eps: Added to the variance.
        backend: "auto", "torch" or "triton".

    Returns:
        The sum and its norm, in the shape and dtype of x.

    Raises:
        ValueError: A shape, dtype or device does not fit, or the backend cannot run here.
    """
    total, y = add_layer_norm_call(x, branch, scale, weight, bias, eps, backend)[:2]
    return (x if branch is None else total), y


def _check(x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor) -> None:
    if branch is not None:
        check_tensor("branch", branch, tuple(x.shape), "that of x", x)
        if branch.dtype != x.dtype:
            raise ValueError(f"branch has dtype {branch.dtype}, but x has {x.dtype}")
    if scale is not None:
        check_tensor("scale", scale, (x.shape[0],), "[B]", x)
        if branch is None:
            raise ValueError("scale is of branch, but there is none")
    check_tensor("weight", weight, (x.shape[-1],), "[D]", x)
    check_tensor("bias", bias, (x.shape[-1],), "[D]", x)


_TENSORS = "Tensor x, Tensor? branch, Tensor? scale, Tensor weight, Tensor bias"
LIBRARY.define(
    f"add_layer_norm({_TENSORS}, float eps=1e-05, str backend=\"auto\") -> "
    "(Tensor total, Tensor y, Tensor mean, Tensor rstd)")
LIBRARY.define(
    "add_layer_norm_backward(Tensor dy, Tensor? dtotal, Tensor total, Tensor? mean, Tensor? rstd, Tensor? scale, "
    "Tensor weight, Tensor bias, float eps, str backend) -> Tensor[]")


@implements("add_layer_norm")
def _forward(
        x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5,
        backend: str = "auto",
) -> tuple[Tensor | None, ...]:
    _check(x, branch, scale, weight, bias)
    return _run(x, branch, scale, weight, bias, eps, backend)


def _run(
        x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str,
) -> tuple[Tensor | None, ...]:
    if resolve_backend(backend, x) == "triton":
        total, y = _triton.add_norm_forward(x, branch, scale, weight, bias, eps)
        return total if branch is not None else None, y, None, None  # the statistics are computed again backwards
    total = x
    if branch is not None:
        total = x + (branch if scale is None else _per_image(scale, branch) * branch).to(x.dtype)
    dtype = compute_dtype(x)
    y, mean, rstd = torch.native_layer_norm(
        total.to(dtype).contiguous(), (x.shape[-1],), weight.to(dtype), bias.to(dtype), eps)
    return total if branch is not None else None, y.to(x.dtype), mean, rstd


@implements("add_layer_norm_backward")
def _backward(
        dy: Tensor, dtotal: Tensor | None, total: Tensor, mean: Tensor | None, rstd: Tensor | None,
        scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str,
) -> list[Tensor | None]:
    grads = gradients(dy, dtotal, total, mean, rstd, scale, weight, bias, eps, backend, None)
    return fit_gradients(grads, (total, total if scale is not None else None, weight, bias))


def gradients(
        dy: Tensor, dtotal: Tensor | None, total: Tensor, mean: Tensor | None, rstd: Tensor | None,
        scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str, sums: Any,
) -> tuple[Any, ...]:
    """Those to parameters are in any dtype, and there when ``sums`` have run."""
    if resolve_backend(backend, total) == "triton":
        return _triton.add_norm_backward(dy, dtotal, total, scale, weight, bias, eps, sums)
    dtype = compute_dtype(total)
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dy.to(dtype).contiguous(), total.to(dtype).contiguous(), (total.shape[-1],), mean, rstd, weight.to(dtype),
        bias.to(dtype), [True, True, True])
    dx = dx if dtotal is None else dx + dtotal
    dbranch = (dx * _per_image(scale, dx)).to(total.dtype) if scale is not None else None
    return dx.to(total.dtype), dbranch, dweight, dbias


def _per_image(scale: Tensor, like: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (like.ndim - 1))


@torch.library.register_fake("vmamba::add_layer_norm", lib=LIBRARY)
def _forward_fake(
        x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5,
        backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(x, branch, scale, weight, bias)
    kept = resolve_backend(backend, x) != "triton"
    statistics, dtype = ((*x.shape[:-1], 1), compute_dtype(x)) if kept else (0, x.dtype)
    return (
        x.new_empty(x.shape if branch is not None else 0), x.new_empty(x.shape),
        x.new_empty(statistics, dtype=dtype), x.new_empty(statistics, dtype=dtype))


@torch.library.register_fake("vmamba::add_layer_norm_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, dtotal: Tensor | None, total: Tensor, mean: Tensor | None, rstd: Tensor | None,
        scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float, backend: str,
) -> list[Tensor]:
    dbranch = total.new_empty(total.shape if scale is not None else 0)
    return [total.new_empty(total.shape), dbranch, weight.new_empty(weight.shape), bias.new_empty(bias.shape)]


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
    x, branch, scale, weight, bias, ctx.eps, ctx.backend = inputs
    ctx.branched = branch is not None
    ctx.save_for_backward(output[0] if ctx.branched else x, *output[2:], scale, weight, bias)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dtotal: Tensor | None, dy: Tensor | None, *_: Tensor | None) -> tuple:
    total, mean, rstd, scale, weight, bias = ctx.saved_tensors
    if dy is None:
        if dtotal is None or not ctx.branched:
            return (None,) * 7
        dbranch = dtotal if scale is None else (dtotal * _per_image(scale, dtotal)).to(dtotal.dtype)
        return dtotal, dbranch, None, None, None, None, None
    dx, dbranch, dweight, dbias = _differentiate(
        dy, dtotal if ctx.branched else None, total, mean, rstd, scale, weight, bias, ctx.eps, ctx.backend)
    if scale is None:
        dbranch = dx
    return dx, dbranch if ctx.branched else None, None, dweight, dbias, None, None


_differentiate = direct("add_layer_norm_backward", _backward)
torch.library.register_autograd("vmamba::add_layer_norm", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x", "branch")
cast_under_autocast("add_layer_norm", _CAST)
add_layer_norm_call = shortcut("add_layer_norm", _run, _setup_context, _autograd, _CAST, results=2)
