"""A residual block of VMamba as one node of autograd, which costs the host a fraction of its operators one by one."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ._backend import resolve_backend
from ._library import as_autocast, casts_of, fit_gradients, node, with_casts
from ._triton import sums as triton_sums
from .add_layer_norm import _run as add_norm_forward
from .add_layer_norm import gradients as norm_gradients
from .mlp import _forward as mlp_forward
from .mlp import gradients as mlp_gradients
from .ss2d_mixer import KEPT
from .ss2d_mixer import _forward as mixer_forward
from .ss2d_mixer import gradients as mixer_gradients

__all__ = ["residual_block"]

_MIXER = 11     # weights
_KEPT = len(KEPT)


def residual_block(
        x: Tensor, branch: Tensor | None, scales: tuple[Tensor | None, Tensor | None],
        norm1: tuple[Tensor, Tensor], mixer: tuple[Tensor | None, ...], norm2: tuple[Tensor, Tensor],
        mlp: tuple[Tensor, Tensor, Tensor, Tensor], order: str, eps: float, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """What a block before left to add, norm, mixer, addition and norm, MLP: the operators of these names in a row.

    It is no operator of its own and does nothing but call them, with gradients, on tensors that no compiler, tracer,
    mode or transform follows.

    Args:
        x: [B, H, W, C] residual stream.
        branch: The same shape, of the block before; None where there is nothing to add.
        scales: [B] float32 factors of each image's branch, of this one and of the mixer's; None for 1.
        norm1: Weight and bias [C].
        mixer: The weights of ``ss2d_mixer``.
        norm2: Weight and bias [C].
        mlp: The weights and biases of ``mlp``.
        order: Name of the scan order.
        eps: Added to the variances of all norms.
        backend: "auto", "torch" or "triton".

    Returns:
        The residual stream and the MLP's branch, which is yet to be added to it.
    """
    x, branch = as_autocast((x, branch), (0, 1))
    return _node(x, branch, *scales, *norm1, *mixer, *norm2, *mlp, order, eps, backend)


def _split(weights: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
    """Those of the first norm, the mixer, the second norm and the MLP."""
    return weights[:2], weights[2:2 + _MIXER], weights[2 + _MIXER:4 + _MIXER], weights[4 + _MIXER:]


def _forward(x: Tensor, branch: Tensor | None, scale1: Tensor | None, scale2: Tensor | None, *rest: Any) -> tuple:
    *weights, order, eps, backend = rest
    norm1, mixer, norm2, of_mlp = _split(tuple(weights))
    # all casts in one launch; for the backward only those of matrices are kept
    narrow = mixer[0], mixer[3], mixer[10], *of_mlp
    casts = casts_of(narrow, x.dtype)
    in_weight, proj_weight, out_weight, weight1, bias1, weight2, bias2 = with_casts(casts, narrow)
    total1, y1, *statistics1 = add_norm_forward(*(x, branch, scale1, *norm1, eps, backend))
    total1 = x if total1 is None else total1
    mixed, *kept = mixer_forward(
        y1, in_weight, *mixer[1:3], proj_weight, *mixer[4:10], out_weight, order, eps, backend, True)
    total2, y2, *statistics2 = add_norm_forward(*(total1, mixed, scale2, *norm2, eps, backend))
    y, hidden, activation, *_ = mlp_forward(y2, weight1, bias1, weight2, bias2, backend)
    kept[-3:] = casts[:3]
    return total2, y, total1, y1, *statistics1, *kept, y2, *statistics2, hidden, activation, casts[3], casts[5]


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, branch, *tensors, ctx.order, ctx.eps, ctx.backend = inputs
    ctx.branched = branch is not None
    total2, _, *saved = output
    ctx.save_for_backward(total2, *saved, *tensors)


def _backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple:
    saved, order, eps, backend = ctx.saved_tensors, ctx.order, ctx.eps, ctx.backend
    total2, total1, y1, mean1, rstd1 = saved[:5]
    kept, rest = saved[5:5 + _KEPT], saved[5 + _KEPT:]
    (y2, mean2, rstd2), hidden, (scale1, scale2), weights = rest[:3], rest[3:7], rest[7:9], rest[9:]
    norm1, mixer, norm2, of_mlp = _split(weights)
    sums = triton_sums() if resolve_backend(backend, total2) == "triton" else None
    dy2, *dmlp = mlp_gradients(*(dy, *hidden, y2, *of_mlp, sums))
    dtotal, dmixed, *dnorm2 = norm_gradients(
        *(dy2, dtotal, total2, mean2, rstd2, scale2, *norm2, eps, backend, sums))
    dmixed = dtotal if scale2 is None else dmixed
    dy1, *dmixer = mixer_gradients(*(dmixed, *kept, y1, *mixer, order, eps, backend, sums))
    dx, dbranch, *dnorm1 = norm_gradients(
        *(dy1, dtotal, total1, mean1, rstd1, scale1, *norm1, eps, backend, sums))
    if sums is not None:
        sums.run()
    dbranch = dx if scale1 is None else dbranch
    dweights = fit_gradients((*dnorm1, *dmixer, *dnorm2, *dmlp), weights)
    return dx, dbranch if ctx.branched else None, None, None, *dweights, None, None, None


_node = node(_forward, _setup_context, _backward, results=2)
