"""``ss2d_mixer``: VMamba's mixer from projection to projection, ``torch.ops.vmamba.ss2d_mixer``."""
from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

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
from .depthwise_conv_silu import _forward as conv_forward
from .depthwise_conv_silu import _forward_fake as conv_fake
from .depthwise_conv_silu import gradients as conv_gradients
from .ss2d_scan_norm import _forward as scan_forward
from .ss2d_scan_norm import _forward_fake as scan_fake
from .ss2d_scan_norm import gradients as scan_gradients

__all__ = ["ss2d_mixer"]


def ss2d_mixer(
        x: Tensor, in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor,
        norm_bias: Tensor, out_weight: Tensor, *, order: str, eps: float = 1e-5, backend: str = "auto",
) -> Tensor:
    """Project, convolve, scan in K directions, normalise, project back: one operator for a host that is slow.

    The mixer of VMamba without gate (Liu et al., arXiv:2401.10166, figure 3): what :func:`depthwise_conv_silu` and
    :func:`ss2d_scan_norm` compute between three matrix products. A GPU does no less than for them; the host, which a
    training step of a small model waits for, starts one operator each way and not six. Weights are taken in the dtype
    of x, which under autocast is autocast's; the gradients to float32 weights are not rounded to it. The casts are kept
    for the backward.

    Args:
        x: [B, H, W, C].
        in_weight: [D, C].
        conv_weight: [D, 1, 3, 3].
        conv_bias: [D], or None.
        proj_weight: [K * (R + 2N), D]: the factors of the step sizes, B and C of each direction.
        dt_weight: [K, D, R].
        dt_bias: [K, D], or None.
        A_log: [K, D, N].
        D_skip: [K, D], or None.
        norm_weight: [D].
        norm_bias: [D].
        out_weight: [E, D].
        order: Name of a scan order of K directions over H x W tokens, see :func:`vmamba.scans.list_scans`.
        eps: Added to the variance.
        backend: "auto", "torch" or "triton".

    Returns:
        [B, H, W, E] in the dtype of x.

    Raises:
        ValueError: A shape or device does not fit, there is no such order, or the backend cannot run here.
    """
    return _mixer(
        x, in_weight, conv_weight, conv_bias, proj_weight, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias,
        out_weight, order, eps, backend, torch.is_grad_enabled())[0]


def _check(x: Tensor, in_weight: Tensor, proj_weight: Tensor, dt_weight: Tensor, out_weight: Tensor) -> None:
    check_tensor("x", x, (None, None, None, None), "[B, H, W, C]", x)
    check_tensor("in_weight", in_weight, (None, x.shape[3]), "[D, C]", x)
    channels, directions = in_weight.shape[0], dt_weight.shape[0]
    check_tensor("proj_weight", proj_weight, (None, channels), "[K * (R + 2N), D]", x)
    check_tensor("out_weight", out_weight, (None, channels), "[E, D]", x)
    if proj_weight.shape[0] % directions:
        raise ValueError(
            f"proj_weight has {proj_weight.shape[0]} rows, which {directions} directions cannot share equally")


_TENSORS = (
    "Tensor x, Tensor in_weight, Tensor conv_weight, Tensor? conv_bias, Tensor proj_weight, Tensor dt_weight, "
    "Tensor? dt_bias, Tensor A_log, Tensor? D_skip, Tensor norm_weight, Tensor norm_bias, Tensor out_weight")
KEPT = ("inner", "conv", "tokens", "proj", "merged", "states", "normed", "in_cast", "proj_cast", "out_cast")
LIBRARY.define(
    f"ss2d_mixer({_TENSORS}, str order, float eps, str backend, bool save) -> "
    f"(Tensor y, {', '.join(f'Tensor {name}' for name in KEPT)})")
LIBRARY.define(
    f"ss2d_mixer_backward(Tensor dy, {', '.join(f'Tensor? {name}' for name in KEPT)}, {_TENSORS}, str order, "
    "float eps, str backend) -> Tensor[]")


def _scan_arguments(
        tokens: Tensor, proj: Tensor, parameters: tuple[Tensor | None, ...], order: str, height: int, width: int,
        norm_weight: Tensor, norm_bias: Tensor, eps: float, backend: str,
) -> tuple[Any, ...]:
    return tokens, proj, *parameters, order, height, width, None, norm_weight, norm_bias, None, eps, backend


@implements("ss2d_mixer")
def _forward(
        x: Tensor, in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor,
        norm_bias: Tensor, out_weight: Tensor, order: str, eps: float, backend: str, save: bool,
) -> tuple[Tensor | None, ...]:
    _check(x, in_weight, proj_weight, dt_weight, out_weight)
    batch, height, width, _ = x.shape
    weights = in_weight, proj_weight, out_weight
    casts = casts_of(weights, x.dtype)
    in_weight, proj_weight, out_weight = with_casts(casts, weights)
    inner = F.linear(x, in_weight)
    mixed, conv = conv_forward(inner, conv_weight, conv_bias, backend)
    tokens = mixed.view(batch, height * width, -1)
    proj = F.linear(tokens, proj_weight).view(batch, height * width, dt_weight.shape[0], -1)
    scan = _scan_arguments(
        tokens, proj, (dt_weight, dt_bias, A_log, D_skip), order, height, width, norm_weight, norm_bias, eps, backend)
    normed, merged, states = scan_forward(*(*scan, save))
    y = F.linear(normed, out_weight).view(batch, height, width, -1)
    if not save:
        return y, *(None for _ in KEPT)
    return y, inner, conv, tokens, proj, merged, states, normed, *casts


@implements("ss2d_mixer_backward")
def _backward(
        dy: Tensor, inner: Tensor, conv: Tensor | None, tokens: Tensor, proj: Tensor, merged: Tensor, states: Tensor,
        normed: Tensor, in_cast: Tensor | None, proj_cast: Tensor | None, out_cast: Tensor | None, x: Tensor,
        in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor, dt_weight: Tensor,
        dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        out_weight: Tensor, order: str, eps: float, backend: str,
) -> list[Tensor | None]:
    weights = (
        in_weight, conv_weight, conv_bias, proj_weight, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias,
        out_weight)
    sums = _triton.sums() if resolve_backend(backend, x) == "triton" else None
    grads = gradients(
        dy, inner, conv, tokens, proj, merged, states, normed, in_cast, proj_cast, out_cast, x, *weights, order, eps,
        backend, sums)
    if sums is not None:
        sums.run()
    return fit_gradients(grads, (x, *weights))


def gradients(
        dy: Tensor, inner: Tensor, conv: Tensor | None, tokens: Tensor, proj: Tensor, merged: Tensor, states: Tensor,
        normed: Tensor, in_cast: Tensor | None, proj_cast: Tensor | None, out_cast: Tensor | None, x: Tensor,
        in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor, dt_weight: Tensor,
        dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        out_weight: Tensor, order: str, eps: float, backend: str, sums: Any,
) -> list[Tensor | None]:
    """Before they are brought to their arguments' dtypes; those to parameters are there when ``sums`` have run."""
    _, height, width, channels = x.shape
    inner_channels = tokens.shape[2]
    casts = with_casts((in_cast, proj_cast, out_cast), (in_weight, proj_weight, out_weight))
    flat_dy, flat_tokens = dy.reshape(-1, dy.shape[3]), tokens.view(-1, inner_channels)
    dnormed = (flat_dy @ casts[2]).view(normed.shape)
    scan = _scan_arguments(
        tokens, proj, (dt_weight, dt_bias, A_log, D_skip), order, height, width, norm_weight, norm_bias, eps, backend)
    dtokens, dproj, *dscan, _ = scan_gradients(dnormed, merged, states, *(*scan, sums))
    dtokens, dproj = cast("list[Tensor]", fit_gradients((dtokens, dproj), (tokens, proj)))
    flat_dproj = dproj.view(flat_tokens.shape[0], -1)
    dmixed = torch.addmm(dtokens.view(flat_tokens.shape), flat_dproj, casts[1])
    dinner, *dconv = conv_gradients(dmixed.view(inner.shape), conv, inner, conv_weight, conv_bias, backend, sums)
    (dinner,) = cast("list[Tensor]", fit_gradients((dinner,), (inner,)))
    flat_dinner = dinner.view(flat_tokens.shape)
    return [
        (flat_dinner @ casts[0]).view(x.shape),
        weight_gradient(flat_dinner, x.reshape(-1, channels), in_weight), *dconv,
        weight_gradient(flat_dproj, flat_tokens, proj_weight), *dscan,
        weight_gradient(flat_dy, normed.view(flat_tokens.shape), out_weight)]


@torch.library.register_fake("vmamba::ss2d_mixer", lib=LIBRARY)
def _forward_fake(
        x: Tensor, in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor,
        norm_bias: Tensor, out_weight: Tensor, order: str, eps: float, backend: str, save: bool,
) -> tuple[Tensor, ...]:
    _check(x, in_weight, proj_weight, dt_weight, out_weight)
    batch, height, width, _ = x.shape
    inner = x.new_empty((batch, height, width, in_weight.shape[0]))
    mixed, conv = conv_fake(inner, conv_weight, conv_bias, backend)
    tokens = mixed.view(batch, height * width, -1)
    proj = x.new_empty((batch, height * width, dt_weight.shape[0], proj_weight.shape[0] // dt_weight.shape[0]))
    scan = _scan_arguments(
        tokens, proj, (dt_weight, dt_bias, A_log, D_skip), order, height, width, norm_weight, norm_bias, eps, backend)
    normed, merged, states = scan_fake(*(*scan, save))
    y = x.new_empty((batch, height, width, out_weight.shape[0]))
    if not save:
        return y, *(x.new_empty(0) for _ in KEPT)
    casts = fake_casts((in_weight, proj_weight, out_weight), x.dtype)
    return y, inner, conv, tokens.new_empty(tokens.shape), proj, merged, states, normed, *casts


@torch.library.register_fake("vmamba::ss2d_mixer_backward", lib=LIBRARY)
def _backward_fake(dy: Tensor, *arguments: Any) -> list[Tensor]:
    return fake_gradients(arguments[len(KEPT):-3])


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor | None, ...]) -> None:
    *tensors, ctx.order, ctx.eps, ctx.backend, save = inputs
    if not save:
        raise RuntimeError("ss2d_mixer was called with save=False, but a gradient is wanted")
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple:
    if dy is None:
        return (None,) * 16
    saved = ctx.saved_tensors
    grads = _differentiate(dy, *saved, ctx.order, ctx.eps, ctx.backend)
    return (*unpack_gradients(grads, saved[len(KEPT):]), None, None, None, None)


_differentiate = direct("ss2d_mixer_backward", _backward)
torch.library.register_autograd("vmamba::ss2d_mixer", _autograd, setup_context=_setup_context, lib=LIBRARY)
_CAST = ("x",)
cast_under_autocast("ss2d_mixer", _CAST)
_mixer = shortcut("ss2d_mixer", _forward, _setup_context, _autograd, _CAST, results=1)
