"""``depthwise_conv_add``: a map and its 3x3 depthwise convolution, ``torch.ops.vmamba.depthwise_conv_add``."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _triton
from ._backend import resolve_backend
from ._library import (
    LIBRARY,
    cast_under_autocast,
    direct,
    fake_gradients,
    fit_gradients,
    implements,
    shortcut,
    unpack_gradients,
)
from .depthwise_conv_silu import _flops, check_depthwise_conv, depthwise_conv, depthwise_conv_backward

__all__ = ["depthwise_conv_add"]


def depthwise_conv_add(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """``x + conv(x)`` of a channels-last map, the convolution depthwise and padded with zeros.

    A conditional position encoding (Chu et al., arXiv:2102.10882). Under autocast, x is taken in autocast's dtype; the
    weights stay what they are.

    Args:
        x: [B, H, W, C].
        weight: [C, 1, 3, 3].
        bias: [C], or None.
        backend: "auto", "torch" or "triton".

    Returns:
        [B, H, W, C] in the dtype of x.

    Raises:
        ValueError: A shape or device does not fit, or the backend cannot run here.
    """
    return _call(x, weight, bias, backend)


LIBRARY.define("depthwise_conv_add(Tensor x, Tensor weight, Tensor? bias, str backend=\"auto\") -> Tensor")
LIBRARY.define(
    "depthwise_conv_add_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor[]")


@implements("depthwise_conv_add")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto") -> Tensor:
    if resolve_backend(backend, x) == "triton":
        return _triton.depthwise_conv_add_forward(x, weight, bias)
    check_depthwise_conv(x, weight, bias)
    return x + depthwise_conv(x, weight, bias)


@implements("depthwise_conv_add_backward")
def _backward(
        dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str,
) -> list[Tensor | None]:
    if resolve_backend(backend, x) == "triton":
        return fit_gradients(_triton.depthwise_conv_add_backward(dy, x, weight, bias), (x, weight, bias))
    dx, dweight, dbias = depthwise_conv_backward(dy, x, weight, bias)
    return fit_gradients((dx + dy, dweight, dbias), (x, weight, bias))


@torch.library.register_fake("vmamba::depthwise_conv_add", lib=LIBRARY)
def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto") -> Tensor:
    check_depthwise_conv(x, weight, bias)
    return x.new_empty(x.shape)


@torch.library.register_fake("vmamba::depthwise_conv_add_backward", lib=LIBRARY)
def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> list[Tensor]:
    return fake_gradients((x, weight, bias))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, dy: Tensor) -> tuple:
    tensors = ctx.saved_tensors
    return (*unpack_gradients(_differentiate(dy, *tensors, ctx.backend), tensors), None)


_differentiate = direct("depthwise_conv_add_backward", _backward)
torch.library.register_autograd("vmamba::depthwise_conv_add", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x",)
cast_under_autocast("depthwise_conv_add", _CAST)
_call = shortcut("depthwise_conv_add", _forward, _setup_context, _autograd, _CAST)
register_flop_formula(torch.ops.vmamba.depthwise_conv_add)(_flops)
