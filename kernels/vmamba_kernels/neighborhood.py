"""Neighbourhood attention of a map in two halves: the weights of every position's window, and sums by such weights.

weights[p, j] = softmax over j of <q[p], k[neighbour j of p]> + bias
y[p] = sum over j of weights[p, j] v[neighbour j of p]

Hassani et al., "Neighborhood Attention Transformer", arXiv:2204.07143; dilated: arXiv:2209.15001.
"""

import math

import torch

from . import _launch
from ._launch import cdiv, check_device, check_shape, fast_math, launch, pow2, rows_contiguous
from ._neighborhood import scores_backward_kernel, spread_kernel, weights_kernel, window_gather_kernel

_TILE = 16  # positions per program, the least that a product of matrices takes


def _check(window: int, **tensors: torch.Tensor) -> None:
    check_device(**tensors)
    for name, t in tensors.items():
        if t.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has dtype {t.dtype}, expected float16, bfloat16 or float32")
    first = next(iter(tensors.values()))
    if first.dim() != 5 or not first.numel():
        raise ValueError(f"{next(iter(tensors))} has shape {tuple(first.shape)}, expected five axes, none empty")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}, expected an odd number")


def _run(
    kernel, maps: tuple[torch.Tensor, ...], window: int, dilated: bool, looked_at: int, *pointers, share=16, **how
) -> None:
    """Launch for all positions of maps of one shape; those of a tile look at (at most) ``looked_at`` along a row.

    A warp gets ``share`` of these columns.
    """
    batch, height, width, heads, channels = maps[0].shape
    row_dilation, dilation = (max(1, min(extent // window, window)) if dilated else 1 for extent in (height, width))
    length = cdiv(width, dilation)  # of the longest class
    blocks = cdiv(length, _TILE)
    columns = pow2(max(window, min(length, looked_at)))
    strides = [stride for t in maps for stride in (t.stride(0), t.stride(2), t.stride(3))]
    aligned = math.gcd(16 // maps[0].element_size(), channels, *strides)  # elements that can be read at once
    vector = aligned if all(t.data_ptr() % 16 == 0 for t in maps) else 1
    launch(
        kernel, (batch * height * heads * dilation * blocks,), *pointers, *strides, height, width, heads, row_dilation,
        dilation, blocks, D=channels, BD=pow2(channels), K=window, N=columns, Q=_TILE,
        VECTOR=vector, FAST=fast_math(), num_warps=columns // share, **how,
    )  # fmt: skip


def _looked_at(window: int) -> int:
    """Columns in the windows of a tile: a window more for the last than for the first, less what they share."""
    return _TILE + window - 1


def _taken_by(window: int) -> int:
    """Columns whose windows hold a place of a tile; at the ends of a class windows reach further to one side."""
    return _TILE + window - 1 + window // 2 if window <= _TILE else _TILE + 2 * window - 2


def _tokens(t: torch.Tensor) -> torch.Tensor:
    """``t`` with tokens at equal distances and channels next to each other, copied only if needed."""
    t = rows_contiguous(t)
    return t if t.stride(1) == t.shape[2] * t.stride(2) or t.shape[1] == 1 else t.contiguous()


def _new(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    return _launch.empty(shape, dtype=like.dtype, device=like.device)


def neighborhood_weights_forward(
    q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, window: int, dilated: bool
) -> torch.Tensor:
    """Weights of each position's window, [B, H, W, n, K * K] in the dtype of q.

    Args:
        q: [B, H, W, n, D] float16, bfloat16 or float32, scaled; n heads.
        k: the same.
        bias: [n, 2 K - 1, 2 K - 1], by the distance along both axes.
        window: K, an odd number.
        dilated: with dilations min(H // K, K) and min(W // K, K) of the two axes, at least 1.

    Raises:
        ValueError: on a wrong shape, dtype or device.
    """
    _check(window, q=q, k=k, bias=bias)
    check_shape("k", k, tuple(q.shape), "that of q")
    check_shape("bias", bias, (q.shape[3], 2 * window - 1, 2 * window - 1), "(n, 2 K - 1, 2 K - 1)")
    q, k = _tokens(q), _tokens(k)
    out = _new((*q.shape[:4], window * window), q)
    _run(weights_kernel, (q, k), window, dilated, _looked_at(window), q, k, bias.float().contiguous(), out,
         share=8)  # fmt: skip
    return out


def neighborhood_weights_backward(
    dweights: torch.Tensor, weights: torch.Tensor, q: torch.Tensor, k: torch.Tensor, window: int, dilated: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients to q, k and the scores before the softmax, [B, H, W, n, K * K]; deterministic.

    Args:
        dweights: gradient to the weights.
        weights: what the forward returned.
        q: and further arguments as given to the forward.
        k: as above.
        window: as above.
        dilated: as above.
    """
    _check(window, q=q, k=k, weights=weights, dweights=dweights)
    q, k = _tokens(q), _tokens(k)
    dscores, dq, dk = _new(weights.shape, weights), _new(q.shape, q), _new(k.shape, k)
    _run(scores_backward_kernel, (k,), window, dilated, _looked_at(window), weights.contiguous(), dweights.contiguous(),
         k, dscores, dq, KK=pow2(window * window))  # fmt: skip
    _run(spread_kernel, (q,), window, dilated, _taken_by(window), dscores, q, dk)
    return dq, dk, dscores


def neighborhood_apply_forward(weights: torch.Tensor, v: torch.Tensor, window: int, dilated: bool) -> torch.Tensor:
    """Sums over windows, [B, H, W, n, D] in the dtype of v, of values v by weights [B, H, W, n, K * K].

    Raises:
        ValueError: on a wrong shape, dtype or device.
    """
    _check(window, v=v, weights=weights)
    check_shape("weights", weights, (*v.shape[:4], window * window), "(B, H, W, n, K * K)")
    v = _tokens(v)
    out = _new(v.shape, v)
    _run(window_gather_kernel, (v, v), window, dilated, _looked_at(window), weights.contiguous(), v, v, out,
         DOTS=False)  # fmt: skip
    return out


def neighborhood_apply_backward(
    dy: torch.Tensor, weights: torch.Tensor, v: torch.Tensor, window: int, dilated: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients to the weights and to v; deterministic. Arguments as given to the forward."""
    _check(window, dy=dy, v=v, weights=weights)
    check_shape("dy", dy, tuple(v.shape), "that of v")
    dy, v, weights = _tokens(dy), _tokens(v), weights.contiguous()
    dweights, dv = _new(weights.shape, weights), _new(v.shape, v)
    _run(window_gather_kernel, (v, dy), window, dilated, _looked_at(window), weights, v, dy, dweights, DOTS=True)
    _run(spread_kernel, (dy,), window, dilated, _taken_by(window), weights, dy, dv)
    return dweights, dv
