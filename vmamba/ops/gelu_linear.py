"""``gelu_linear``: the second half of an MLP, ``torch.ops.vmamba.gelu_linear``."""
from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _triton
from ._backend import resolve_backend
from ._library import LIBRARY, cast_under_autocast, direct, fake_gradients, pack_gradients, shortcut, unpack_gradients
from ._shapes import check_tensor

__all__ = ["gelu_linear"]


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """``linear(gelu(x))`` that keeps x for its backward and not the activation too.

    GELU (Hendrycks and Gimpel, arXiv:1606.08415) in its exact form. With Triton the backward computes the activation
    again in the pass that computes its gradient: an MLP keeps a third less. Elsewhere the activation is kept, since
    memory is not what a CPU lacks. Under autocast all three are taken in autocast's dtype.

    Args:
        x: [..., D].
        weight: [E, D].
        bias: [E].
        backend: "auto", "torch" or "triton".

    Returns:
        [..., E] in the dtype of x.

    Raises:
        ValueError: A shape or device does not fit, or the backend cannot run here.
    """
    return gelu_linear_call(x, weight, bias, backend)[0]


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    check_tensor("weight", weight, (None, x.shape[-1]), "[E, D]", x)
    check_tensor("bias", bias, (weight.shape[0],), "[E]", x)


LIBRARY.define(
    "gelu_linear(Tensor x, Tensor weight, Tensor bias, str backend=\"auto\") -> (Tensor y, Tensor activation)")
LIBRARY.define(
    "gelu_linear_backward(Tensor dy, Tensor activation, Tensor x, Tensor weight, Tensor bias, str backend) "
    "-> Tensor[]")


@torch.library.impl(LIBRARY, "gelu_linear", "CompositeExplicitAutograd")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    _check(x, weight, bias)
    activation = F.gelu(x)
    keep = resolve_backend(backend, x) != "triton"
    return F.linear(activation, weight, bias), activation.contiguous() if keep else x.new_empty(0)


@torch.library.impl(LIBRARY, "gelu_linear_backward", "CompositeExplicitAutograd")
def _backward(
        dy: Tensor, activation: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str,
) -> list[Tensor]:
    flat = dy.reshape(-1, dy.shape[-1])
    dactivation = (flat @ weight).view(x.shape)
    if resolve_backend(backend, x) == "triton":
        activation, dx = _triton.gelu_backward(dactivation, x)
    else:
        dx = torch.ops.aten.gelu_backward(dactivation, x)
    dweight = flat.t() @ activation.reshape(-1, x.shape[-1])
    return pack_gradients((dx, dweight, flat.sum(0)), (x, weight, bias))


@torch.library.register_fake("vmamba::gelu_linear", lib=LIBRARY)
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    _check(x, weight, bias)
    kept = 0 if resolve_backend(backend, x) == "triton" else x.shape
    return x.new_empty((*x.shape[:-1], weight.shape[0])), x.new_empty(kept)


@torch.library.register_fake("vmamba::gelu_linear_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, activation: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, weight, bias))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple:
    if dy is None:
        return None, None, None, None
    activation, *tensors = ctx.saved_tensors
    grads = _differentiate(dy, activation, *tensors, ctx.backend)
    return (*unpack_gradients(grads, tensors), None)


_differentiate = direct("gelu_linear_backward", _backward)
torch.library.register_autograd("vmamba::gelu_linear", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x", "weight", "bias")
cast_under_autocast("gelu_linear", _CAST)
gelu_linear_call = shortcut("gelu_linear", _forward, _setup_context, _autograd, _CAST)


@register_flop_formula(torch.ops.vmamba.gelu_linear)
def _flops(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


@register_flop_formula(torch.ops.vmamba.gelu_linear_backward)
def _flops_backward(
        dy_shape: tuple[int, ...], _: Any, __: Any, weight_shape: tuple[int, ...], *___: Any, **____: Any) -> int:
    return 4 * math.prod(dy_shape) * weight_shape[1]
