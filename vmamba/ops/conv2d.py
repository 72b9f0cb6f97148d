"""``conv2d``: a convolution of channels-last maps that a compiler takes as it is, ``torch.ops.vmamba.conv2d``.

Where Inductor meets a convolution, it may lay out every tensor of four dimensions before and after it as channels-last
images, by the place of their dimensions alone. Of a map [B, H, W, C] it then puts the height last: of all that a
backward keeps there is a transposed copy, and another one back for each of our operators, which take the map as it is.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from ._library import LIBRARY, cast_under_autocast, fake_gradients, fit_gradients, implements, unpack_gradients
from ._shapes import check_tensor

__all__ = ["conv2d"]


def conv2d(
        x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:
    """``F.conv2d`` of a channels-last map, without a bias, which a compiler adds with what comes next.

    Under autocast, x is taken in autocast's dtype; the weight is taken in that of x.

    Args:
        x: [B, H, W, C].
        weight: [E, C / groups, rows, columns].
        stride: Of rows and columns.
        padding: Zeros at both ends of columns and rows.
        dilation: Of the kernel's rows and columns.
        groups: Groups of channels.

    Returns:
        [B, H', W', E] in the dtype of x.

    Raises:
        ValueError: A shape or device does not fit.
    """
    return torch.ops.vmamba.conv2d(x, weight, stride, padding, dilation, groups)


def _check(x: Tensor, weight: Tensor, groups: int) -> None:
    check_tensor("weight", weight, (None, None, None, None), "[E, C / groups, rows, columns]", x)
    check_tensor("x", x, (None, None, None, weight.shape[1] * groups), "[B, H, W, C]", x)


LIBRARY.define(
    "conv2d(Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups) -> Tensor")
LIBRARY.define(
    "conv2d_backward(Tensor dy, Tensor x, Tensor weight, int[] stride, int[] padding, int[] dilation, int groups, "
    "bool need_x, bool need_weight) -> Tensor[]")


@implements("conv2d")
def _forward(
        x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:
    _check(x, weight, groups)
    y = F.conv2d(
        x.permute(0, 3, 1, 2), weight.to(x.dtype), None, list(stride), list(padding), list(dilation), groups)
    return y.permute(0, 2, 3, 1).contiguous()


@implements("conv2d_backward")
def _backward(
        dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        groups: int, need_x: bool, need_weight: bool,
) -> list[Tensor | None]:
    wanted = _wanted(x, weight, need_x, need_weight)
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.to(x.dtype), None, stride, padding, dilation, False,
        [0, 0], groups, [need_x, need_weight, False])
    return fit_gradients((dx.permute(0, 2, 3, 1) if need_x else None, dweight), wanted)


def _wanted(x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor | None, Tensor | None]:
    return x if need_x else None, weight if need_weight else None


@torch.library.register_fake("vmamba::conv2d", lib=LIBRARY)
def _forward_fake(
        x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:
    _check(x, weight, groups)
    height, width = (
        (x.shape[1 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in range(2))
    return x.new_empty((x.shape[0], height, width, weight.shape[0]))


@torch.library.register_fake("vmamba::conv2d_backward", lib=LIBRARY)
def _backward_fake(
        dy: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
        groups: int, need_x: bool, need_weight: bool,
) -> list[Tensor]:
    return fake_gradients(_wanted(x, weight, need_x, need_weight))


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _autograd(ctx: Any, dy: Tensor) -> tuple:
    x, weight = ctx.saved_tensors
    # the images of a stem have no gradient, which would be one of the largest there are
    needed = ctx.needs_input_grad[:2]
    grads = torch.ops.vmamba.conv2d_backward(dy, x, weight, *ctx.how, *needed)
    return (*unpack_gradients(grads, _wanted(x, weight, *needed)), None, None, None, None)


torch.library.register_autograd("vmamba::conv2d", _autograd, setup_context=_setup_context, lib=LIBRARY)
cast_under_autocast("conv2d", ("x",))


@register_flop_formula(torch.ops.vmamba.conv2d)
def _flops(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *_: Any, out_shape: Any = None, **__: Any) -> int:
    b, h, w, e = out_shape
    return conv_flop_count([b, x_shape[3], h, w], list(weight_shape), [b, e, h, w])
