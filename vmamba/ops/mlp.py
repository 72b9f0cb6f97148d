"""``mlp``: linear, GELU, linear, ``torch.ops.vmamba.mlp``."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _triton
from ._backend import resolve_backend
from ._library import (
    LIBRARY,
    cast_under_autocast,
    casts_of,
    direct,
    fake_casts,
    fake_gradients,
    fit_gradients,
    implements,
    shortcut,
    unpack_gradients,
    weight_gradient,
    with_casts,
)
from ._shapes import check_tensor

__all__ = ["mlp"]


def mlp(
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, *, backend: str = "auto",
) -> Tensor:
    """``linear(gelu(linear(x)))`` that keeps for its backward the hidden features before the activation only.

    GELU (Hendrycks and Gimpel, arXiv:1606.08415) in its exact form. With Triton one pass of the backward computes the
    activation again, its gradient and the gradient to the first bias: an MLP keeps a third less, and reads its widest
    tensors once. Elsewhere the activation is kept, since memory is not what a CPU lacks. Weights and biases are taken
    in the dtype of x, which under autocast is autocast's; on a GPU the gradients to float32 ones are not rounded to it.
    Weights that had to be cast for it are kept so for the backward.

    Args:
        x: [..., D].
        weight1: [H, D].
        bias1: [H].
        weight2: [E, H].
        bias2: [E].
        backend: "auto", "torch" or "triton".

    Returns:
        [..., E] in the dtype of x.

    Raises:
        ValueError: A shape or device does not fit, or the backend cannot run here.
    """
    return mlp_call(x, weight1, bias1, weight2, bias2, backend)[0]


def _check(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> None:
    check_tensor("weight1", weight1, (None, x.shape[-1]), "[H, D]", x)
    check_tensor("bias1", bias1, (weight1.shape[0],), "[H]", x)
    check_tensor("weight2", weight2, (None, weight1.shape[0]), "[E, H]", x)
    check_tensor("bias2", bias2, (weight2.shape[0],), "[E]", x)


LIBRARY.define(
    "mlp(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, str backend=\"auto\") "
    "-> (Tensor y, Tensor hidden, Tensor activation, Tensor cast1, Tensor cast2)")
LIBRARY.define(
    "mlp_backward(Tensor dy, Tensor hidden, Tensor? activation, Tensor? cast1, Tensor? cast2, Tensor x, "
    "Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, str backend) -> Tensor[]")


@implements("mlp")
def _forward(
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str = "auto",
) -> tuple[Tensor | None, ...]:
    _check(x, weight1, bias1, weight2, bias2)
    dtype = x.dtype
    weights = weight1, weight2, bias1, bias2
    casts = casts_of(weights, dtype)
    weight1, weight2, bias1, bias2 = with_casts(casts, weights)
    hidden = F.linear(x, weight1, bias1)
    activation = F.gelu(hidden)
    y = F.linear(activation, weight2, bias2)
    return y, hidden, activation if resolve_backend(backend, x) != "triton" else None, *casts[:2]


@implements("mlp_backward")
def _backward(
        dy: Tensor, hidden: Tensor, activation: Tensor | None, cast1: Tensor | None, cast2: Tensor | None,
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str,
) -> list[Tensor | None]:
    sums = _triton.sums() if resolve_backend(backend, x) == "triton" else None
    grads = gradients(dy, hidden, activation, cast1, cast2, x, weight1, bias1, weight2, bias2, sums)
    if sums is not None:
        sums.run()
    return fit_gradients(grads, (x, weight1, bias1, weight2, bias2))


def gradients(
        dy: Tensor, hidden: Tensor, activation: Tensor | None, cast1: Tensor | None, cast2: Tensor | None,
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, sums: Any,
) -> tuple[Tensor, ...]:
    """Before they are brought to their arguments' dtypes; with ``sums``, those to biases are there when they have run.

    Triton runs if there are ``sums``.
    """
    flat, hidden = dy.reshape(-1, dy.shape[-1]), hidden.view(-1, hidden.shape[-1])
    cast1, cast2 = with_casts((cast1, cast2), (weight1, weight2))
    dactivation = flat @ cast2
    if sums is not None:
        activation, dhidden, dbias1 = _triton.gelu_backward(dactivation, hidden, sums)
        dbias2 = sums.over_all_rows(flat)
    else:
        assert activation is not None
        dhidden = torch.ops.aten.gelu_backward(dactivation, hidden)
        activation = activation.view(hidden.shape)
        dbias1, dbias2 = dhidden.sum(0, dtype=bias1.dtype), flat.sum(0, dtype=bias2.dtype)
    return (
        (dhidden @ cast1).view(x.shape), weight_gradient(dhidden, x.reshape(-1, x.shape[-1]), weight1),
        dbias1, weight_gradient(flat, activation, weight2), dbias2)


@torch.library.register_fake("vmamba::mlp", lib=LIBRARY)
def _forward_fake(
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str = "auto",
) -> tuple[Tensor, ...]:
    _check(x, weight1, bias1, weight2, bias2)
    hidden = x.new_empty((*x.shape[:-1], weight1.shape[0]))
    kept = x.new_empty(0 if resolve_backend(backend, x) == "triton" else hidden.shape)
    return x.new_empty((*x.shape[:-1], weight2.shape[0])), hidden, kept, *fake_casts((weight1, weight2), x.dtype)


@torch.library.register_fake("vmamba::mlp_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, hidden: Tensor, activation: Tensor | None, cast1: Tensor | None, cast2: Tensor | None,
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, weight1, bias1, weight2, bias2))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 6
    saved = ctx.saved_tensors
    return (*unpack_gradients(_differentiate(dy, *saved, ctx.backend), saved[4:]), None)


_differentiate = direct("mlp_backward", _backward)
torch.library.register_autograd("vmamba::mlp", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x",)
cast_under_autocast("mlp", _CAST)
mlp_call = shortcut("mlp", _forward, _setup_context, _autograd, _CAST, results=1)


@register_flop_formula(torch.ops.vmamba.mlp)
def _flops(
        x_shape: tuple[int, ...], weight1_shape: tuple[int, ...], _: Any, weight2_shape: tuple[int, ...], *__: Any,
        **___: Any) -> int:
    return 2 * math.prod(x_shape[:-1]) * weight1_shape[0] * (x_shape[-1] + weight2_shape[0])


@register_flop_formula(torch.ops.vmamba.mlp_backward)
def _flops_backward(
        dy_shape: tuple[int, ...], _: Any, __: Any, ___: Any, ____: Any, x_shape: tuple[int, ...],
        weight1_shape: tuple[int, ...], _____: Any, weight2_shape: tuple[int, ...], *______: Any, **_______: Any,
) -> int:
    return 2 * _flops(x_shape, weight1_shape, None, weight2_shape)
