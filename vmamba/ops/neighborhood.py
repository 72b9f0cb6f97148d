"""Neighbourhood attention in two operators, ``torch.ops.vmamba.neighborhood_weights`` and ``neighborhood_apply``.

Two, because A2Mamba applies the same weights to several maps. Hassani et al., "Neighborhood Attention Transformer",
arXiv:2204.07143, and "Dilated Neighborhood Attention Transformer", arXiv:2209.15001.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _torch_neighborhood, _triton
from ._backend import resolve_backend
from ._library import LIBRARY
from ._shapes import check_tensor, compute_dtype
from ._torch_neighborhood import bias_gradient

__all__ = ["neighborhood_apply", "neighborhood_weights"]


def neighborhood_weights(
        q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool = False, *, backend: str = "auto") -> Tensor:
    """Attention of every position of a map to the K x K positions of its window.

    ``weights[p, j] = softmax_j(<q_p, k_j> + bias)``. Along each axis a window is K neighbours, moved inwards at the
    border so that it keeps its size; a map smaller than the window is taken whole, and what is missing gets weight 0.

    Args:
        q: Queries [B, H, W, n, D] of n heads, scaled; float16, bfloat16, float32 or float64. Sums are float32 (float64
            for float64).
        k: Keys, shaped as q.
        bias: For each head and distance along both axes, [n, 2 K - 1, 2 K - 1].
        window: Side K of the windows, an odd number.
        dilated: Spread the windows over the map: along an axis of E positions neighbours are ``min(E // K, K)`` (at
            least 1) apart, and a border is the end of the positions that far apart.
        backend: "auto" (Triton for CUDA tensors, else plain torch), or "torch", "triton" by name.

    Returns:
        [B, H, W, n, K * K] in the dtype of q, which sums to 1.

    Raises:
        ValueError: A shape, dtype or device does not fit, the window is no odd number, or the named backend cannot run.
    """
    return torch.ops.vmamba.neighborhood_weights(q, k, bias, window, dilated, _named(backend))


def neighborhood_apply(
        weights: Tensor, v: Tensor, window: int, dilated: bool = False, *, backend: str = "auto") -> Tensor:
    """Sums over windows of a map by the weights of :func:`neighborhood_weights`.

    Args:
        weights: [B, H, W, n, K * K].
        v: Values [B, H, W, n, D]; float16, bfloat16, float32 or float64.
        window: Side K of the windows, an odd number.
        dilated: As for the weights.
        backend: As for the weights.

    Returns:
        [B, H, W, n, D] in the dtype of v.

    Raises:
        ValueError: A shape, dtype or device does not fit, the window is no odd number, or the named backend cannot run.
    """
    return torch.ops.vmamba.neighborhood_apply(weights, v, window, dilated, _named(backend))


def _named(backend: str) -> str:
    if backend == "reference":
        raise ValueError("backend is 'reference', but needs one of 'auto', 'torch', 'triton'")
    return backend


def _check_window(name: str, x: Tensor, window: int) -> None:
    check_tensor(name, x, (None,) * 5, "[B, H, W, n, D]", x)
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}, but needs an odd number of at least 1")
    if x.shape[1] < 1 or x.shape[2] < 1:
        raise ValueError(f"{name} needs at least one row and one column, got {list(x.shape[1:3])}")


def _check_weights(q: Tensor, k: Tensor, bias: Tensor, window: int) -> None:
    _check_window("q", q, window)
    check_tensor("k", k, q.shape, "[B, H, W, n, D]", q)
    check_tensor("bias", bias, (q.shape[3], 2 * window - 1, 2 * window - 1), "[n, 2 K - 1, 2 K - 1]", q)


def _check_apply(weights: Tensor, v: Tensor, window: int) -> None:
    _check_window("v", v, window)
    check_tensor("weights", weights, (*v.shape[:4], window * window), "[B, H, W, n, K * K]", v)


LIBRARY.define(
    "neighborhood_weights(Tensor q, Tensor k, Tensor bias, int window, bool dilated, str backend=\"auto\") -> Tensor")
LIBRARY.define(
    "neighborhood_weights_backward(Tensor dweights, Tensor weights, Tensor q, Tensor k, Tensor bias, int window, "
    "bool dilated, str backend) -> (Tensor dq, Tensor dk, Tensor dbias)")
LIBRARY.define(
    "neighborhood_apply(Tensor weights, Tensor v, int window, bool dilated, str backend=\"auto\") -> Tensor")
LIBRARY.define(
    "neighborhood_apply_backward(Tensor dy, Tensor weights, Tensor v, int window, bool dilated, str backend) -> "
    "(Tensor dweights, Tensor dv)")


def _path(backend: str, x: Tensor) -> Any:
    return _triton if resolve_backend(backend, x) == "triton" else _torch_neighborhood


@torch.library.impl(LIBRARY, "neighborhood_weights", "CompositeExplicitAutograd")
def _weights(q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    _check_weights(q, k, bias, window)
    return _path(backend, q).weights_forward(q, k, bias, window, dilated).contiguous()


@torch.library.impl(LIBRARY, "neighborhood_weights_backward", "CompositeExplicitAutograd")
def _weights_backward(
        dweights: Tensor, weights: Tensor, q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dscores = _path(backend, q).weights_backward(dweights, weights, q, k, window, dilated)
    dbias = bias_gradient(dscores, window, dilated, compute_dtype(q))
    return dq.to(q.dtype).contiguous(), dk.to(k.dtype).contiguous(), dbias.to(bias.dtype).contiguous()


@torch.library.impl(LIBRARY, "neighborhood_apply", "CompositeExplicitAutograd")
def _apply(weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    _check_apply(weights, v, window)
    return _path(backend, v).apply_forward(weights, v, window, dilated).contiguous()


@torch.library.impl(LIBRARY, "neighborhood_apply_backward", "CompositeExplicitAutograd")
def _apply_backward(
        dy: Tensor, weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str) -> tuple[Tensor, Tensor]:
    dweights, dv = _path(backend, v).apply_backward(dy, weights, v, window, dilated)
    return dweights.to(weights.dtype).contiguous(), dv.to(v.dtype).contiguous()


@torch.library.register_fake("vmamba::neighborhood_weights", lib=LIBRARY)
def _weights_fake(q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    _check_weights(q, k, bias, window)
    return q.new_empty((*q.shape[:4], window * window))


@torch.library.register_fake("vmamba::neighborhood_weights_backward", lib=LIBRARY)
def _weights_backward_fake(
        dweights: Tensor, weights: Tensor, q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), bias.new_empty(bias.shape)


@torch.library.register_fake("vmamba::neighborhood_apply", lib=LIBRARY)
def _apply_fake(weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    _check_apply(weights, v, window)
    return v.new_empty(v.shape)


@torch.library.register_fake("vmamba::neighborhood_apply_backward", lib=LIBRARY)
def _apply_backward_fake(
        dy: Tensor, weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), v.new_empty(v.shape)


def _weights_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    q, k, bias, *ctx.how = inputs
    ctx.save_for_backward(output, q, k, bias)


def _weights_autograd(ctx: Any, dweights: Tensor) -> tuple:
    grads = torch.ops.vmamba.neighborhood_weights_backward(dweights, *ctx.saved_tensors, *ctx.how)
    return (*grads, None, None, None)


def _apply_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    weights, v, *ctx.how = inputs
    ctx.save_for_backward(weights, v)


def _apply_autograd(ctx: Any, dy: Tensor) -> tuple:
    return (*torch.ops.vmamba.neighborhood_apply_backward(dy, *ctx.saved_tensors, *ctx.how), None, None, None)


torch.library.register_autograd(
    "vmamba::neighborhood_weights", _weights_autograd, setup_context=_weights_context, lib=LIBRARY)
torch.library.register_autograd(
    "vmamba::neighborhood_apply", _apply_autograd, setup_context=_apply_context, lib=LIBRARY)
