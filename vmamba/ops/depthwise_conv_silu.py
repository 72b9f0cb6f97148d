"""``depthwise_conv_silu``: 3x3 depthwise convolution and SiLU, ``torch.ops.vmamba.depthwise_conv_silu``."""
from __future__ import annotations

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
    direct,
    fake_gradients,
    fit_gradients,
    implements,
    shortcut,
    unpack_gradients,
)
from ._shapes import check_tensor

__all__ = ["depthwise_conv_silu"]


def depthwise_conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """``silu(conv(x))`` of a channels-last map, the convolution depthwise and padded with zeros to keep the map's size.

    What VMamba's mixer does before its scan (Liu et al., arXiv:2401.10166, figure 3). Under autocast, x is taken in
    autocast's dtype; the weights stay what they are.

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
    return depthwise_conv_silu_call(x, weight, bias, backend)[0]


def check_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("x", x, (None, None, None, None), "[B, H, W, C]", x)
    check_tensor("weight", weight, (x.shape[3], 1, 3, 3), "[C, 1, 3, 3]", x)
    if bias is not None:
        check_tensor("bias", bias, (x.shape[3],), "[C]", x)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution alone, by PyTorch, contiguous."""
    return F.conv2d(
        x.permute(0, 3, 1, 2), weight.to(x.dtype), bias.to(x.dtype) if bias is not None else None, padding=1,
        groups=x.shape[3]).permute(0, 2, 3, 1).contiguous()


def depthwise_conv_backward(
        dconv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`depthwise_conv` to x, weight and bias."""
    channels = x.shape[3]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        dconv.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.to(x.dtype), [channels] if bias is not None else None,
        [1, 1], [1, 1], [1, 1], False, [0, 0], channels, [True, True, bias is not None])
    return dx.permute(0, 2, 3, 1), dweight, dbias


LIBRARY.define(
    "depthwise_conv_silu(Tensor x, Tensor weight, Tensor? bias, str backend=\"auto\") -> (Tensor y, Tensor conv)")
LIBRARY.define(
    "depthwise_conv_silu_backward(Tensor dy, Tensor? conv, Tensor x, Tensor weight, Tensor? bias, str backend) "
    "-> Tensor[]")


@implements("depthwise_conv_silu")
def _forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    if resolve_backend(backend, x) == "triton":
        # the kernel's backward convolves again, which costs less than keeping what it gives
        return _triton.depthwise_conv_silu_forward(x, weight, bias), None
    check_depthwise_conv(x, weight, bias)
    conv = depthwise_conv(x, weight, bias)
    return F.silu(conv), conv


@implements("depthwise_conv_silu_backward")
def _backward(
        dy: Tensor, conv: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str,
) -> list[Tensor | None]:
    return fit_gradients(gradients(dy, conv, x, weight, bias, backend, None), (x, weight, bias))


def gradients(
        dy: Tensor, conv: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str, sums: Any,
) -> tuple[Tensor | None, ...]:
    """Before they are brought to their arguments' dtypes; those to parameters are there when ``sums`` have run."""
    if resolve_backend(backend, x) == "triton":
        return _triton.depthwise_conv_silu_backward(dy, x, weight, bias, sums)
    return depthwise_conv_backward(torch.ops.aten.silu_backward(dy.contiguous(), conv), x, weight, bias)


@torch.library.register_fake("vmamba::depthwise_conv_silu", lib=LIBRARY)
def _forward_fake(
        x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    check_depthwise_conv(x, weight, bias)
    kept = 0 if resolve_backend(backend, x) == "triton" else x.shape
    return x.new_empty(x.shape), x.new_empty(kept)


@torch.library.register_fake("vmamba::depthwise_conv_silu_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, conv: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str,
) -> list[Tensor]:
    return fake_gradients((x, weight, bias))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple:
    if dy is None:
        return None, None, None, None
    conv, *tensors = ctx.saved_tensors
    grads = _differentiate(dy, conv, *tensors, ctx.backend)
    return (*unpack_gradients(grads, tensors), None)


_differentiate = direct("depthwise_conv_silu_backward", _backward)
torch.library.register_autograd("vmamba::depthwise_conv_silu", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x",)
cast_under_autocast("depthwise_conv_silu", _CAST)
depthwise_conv_silu_call = shortcut("depthwise_conv_silu", _forward, _setup_context, _autograd, _CAST, results=1)


@register_flop_formula(torch.ops.vmamba.depthwise_conv_silu)
def _flops(x_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    b, h, w, c = x_shape
    return 2 * 9 * b * h * w * c
