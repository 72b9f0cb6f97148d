"""Neighbourhood attention of a map in two halves: the weights of every position's window, and sums by such weights.

weights[p, j] = softmax over j of <q[p], k[neighbour j of p]> + bias
y[p] = sum over j of weights[p, j] v[neighbour j of p]

Hassani et al., "Neighborhood Attention Transformer", arXiv:2204.07143; dilated: arXiv:2209.15001.

Along an axis positions fall into as many interleaved classes as the dilation; a window is K neighbours of one class,
moved inwards at the ends of the class. A program takes a few columns of one row, so that a window's row is a scalar.
"""

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import cdiv, check_device, check_shape, launch, pow2, rows_contiguous

_COLUMNS = 16  # of the map per program; half of that where windows are wide


@triton.jit
def axis(place, extent, dilation, K: tl.constexpr):
    """Of a place on an axis: its rank in its class, the class, the length of that and the first rank of the window."""
    rank, group = place // dilation, place % dilation
    length = (extent - 1 - group) // dilation + 1
    return rank, group, length, tl.maximum(tl.minimum(rank - K // 2, length - K), 0)


@triton.jit
def place_of_program(H, W, heads, Q: tl.constexpr):
    """Image, row, columns [Q] and head of this program."""
    pid = tl.program_id(0)
    across = tl.cdiv(W, Q)
    w = pid % across * Q + tl.arange(0, Q)
    n = pid // across % heads
    h = pid // across // heads % H
    return (pid // across // heads // H).to(tl.int64), h, w, n


@triton.jit
def load_vectors(ptr, row, columns, valid, W, stride, d, D: tl.constexpr):
    """Vectors of a head at places of one row: [Q, D] for columns [Q], [Q, J, D] for [Q, J]; zero outside."""
    token = (row * W + columns).to(tl.int64) * stride
    if len(columns.shape) == 1:
        return tl.load(ptr + token[:, None] + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0).to(
            tl.float32)
    else:
        return tl.load(
            ptr + token[:, :, None] + d[None, None, :], mask=valid[:, :, None] & (d < D)[None, None, :],
            other=0.0).to(tl.float32)


@triton.jit
def neighbours(row_start, row_group, row_length, i, start, group, length, row_dilation, dilation, w, W, K: tl.constexpr,
               J: tl.constexpr):
    """Row i of the windows of columns w: its row, their columns [Q, J], the ranks of both, and which there are."""
    j = tl.arange(0, J)
    row_rank = row_start + i
    rank = start[:, None] + j[None, :]
    valid = (row_rank < row_length) & (j < K)[None, :] & (rank < length[:, None]) & (w < W)[:, None]
    return row_rank * row_dilation + row_group, rank * dilation + group[:, None], row_rank, rank, valid


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation"])
def weights_kernel(
    q_ptr,  # [B, H, W, n, D], strides (q_sb, q_st of a token, q_sn, 1)
    k_ptr,
    bias_ptr,  # [n, 2 K - 1, 2 K - 1]
    out_ptr,  # [B, H, W, n, K * K], contiguous
    q_sb, q_st, q_sn, k_sb, k_st, k_sn,
    H, W, heads, row_dilation, dilation,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,
    Q: tl.constexpr,
):  # fmt: skip
    """Weights of a few columns of one row."""
    b, h, w, n = place_of_program(H, W, heads, Q)
    d, j = tl.arange(0, BD), tl.arange(0, J)
    row_rank, row_group, row_length, row_start = axis(h, H, row_dilation, K)
    rank, group, length, start = axis(w, W, dilation, K)
    q = load_vectors(q_ptr + b * q_sb + n * q_sn, h, w, w < W, W, q_st, d, D)
    k_ptr += b * k_sb + n * k_sn
    bias_ptr += n * (2 * K - 1) * (2 * K - 1)
    scores = ()
    largest = tl.full([Q], float("-inf"), tl.float32)
    for i in tl.static_range(K):
        row, columns, their_row, theirs, valid = neighbours(
            row_start, row_group, row_length, i, start, group, length, row_dilation, dilation, w, W, K, J)
        k = load_vectors(k_ptr, row, columns, valid, W, k_st, d, D)
        distance = (their_row - row_rank + K - 1) * (2 * K - 1) + theirs - rank[:, None] + K - 1
        s = tl.sum(q[:, None, :] * k, 2) + tl.load(bias_ptr + distance, mask=valid, other=0.0).to(tl.float32)
        s = tl.where(valid, s, float("-inf"))
        largest = tl.maximum(largest, tl.max(s, 1))
        scores = scores + (s,)
    largest = tl.where(w < W, largest, 0.0)
    total = tl.zeros([Q], tl.float32)
    for i in tl.static_range(K):
        total += tl.sum(tl.exp(scores[i] - largest[:, None]), 1)
    at = (((b * H + h) * W + w) * heads + n) * (K * K)
    inside = (w < W)[:, None] & (j < K)[None, :]
    for i in tl.static_range(K):
        p = tl.exp(scores[i] - largest[:, None]) / total[:, None]
        tl.store(out_ptr + at[:, None] + i * K + j[None, :], p.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation"])
def scores_backward_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    dweights_ptr,  # the same
    k_ptr,  # [B, H, W, n, D]
    dscores_ptr,  # as the weights
    dq_ptr,  # [B, H, W, n, D], contiguous
    k_sb, k_st, k_sn,
    H, W, heads, row_dilation, dilation,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,
    Q: tl.constexpr,
):  # fmt: skip
    """Gradients to the scores before the softmax, and to q."""
    b, h, w, n = place_of_program(H, W, heads, Q)
    d, j = tl.arange(0, BD), tl.arange(0, J)
    _row_rank, row_group, row_length, row_start = axis(h, H, row_dilation, K)
    _rank, group, length, start = axis(w, W, dilation, K)
    k_ptr += b * k_sb + n * k_sn
    token = ((b * H + h) * W + w) * heads + n
    inside = (w < W)[:, None] & (j < K)[None, :]
    total = tl.zeros([Q], tl.float32)
    for i in tl.static_range(K):
        at = token[:, None] * (K * K) + i * K + j[None, :]
        p = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(p * tl.load(dweights_ptr + at, mask=inside, other=0.0).to(tl.float32), 1)
    dq = tl.zeros([Q, BD], tl.float32)
    for i in tl.static_range(K):
        at = token[:, None] * (K * K) + i * K + j[None, :]
        p = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.float32)
        ds = p * (tl.load(dweights_ptr + at, mask=inside, other=0.0).to(tl.float32) - total[:, None])
        tl.store(dscores_ptr + at, ds.to(dscores_ptr.dtype.element_ty), mask=inside)
        row, columns, _their_row, _theirs, valid = neighbours(
            row_start, row_group, row_length, i, start, group, length, row_dilation, dilation, w, W, K, J)
        dq += tl.sum(ds[:, :, None] * load_vectors(k_ptr, row, columns, valid, W, k_st, d, D), 1)
    at = token[:, None] * D + d[None, :]
    tl.store(dq_ptr + at, dq.to(dq_ptr.dtype.element_ty), mask=(w < W)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation"])
def window_gather_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    v_ptr,  # [B, H, W, n, D]; in the dot products' case the gradient to y at the positions themselves
    u_ptr,  # [B, H, W, n, D], the values at the neighbours, in the dot products' case
    out_ptr,  # [B, H, W, n, D], contiguous; [B, H, W, n, K * K] in the dot products' case
    v_sb, v_st, v_sn, u_sb, u_st, u_sn,
    H, W, heads, row_dilation, dilation,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,
    Q: tl.constexpr,
    DOTS: tl.constexpr,  # products of v with its neighbours in u, instead of sums of v's neighbours by weights
):  # fmt: skip
    """Sums over windows, or their gradient to the weights."""
    b, h, w, n = place_of_program(H, W, heads, Q)
    d, j = tl.arange(0, BD), tl.arange(0, J)
    _row_rank, row_group, row_length, row_start = axis(h, H, row_dilation, K)
    _rank, group, length, start = axis(w, W, dilation, K)
    token = ((b * H + h) * W + w) * heads + n
    inside = (w < W)[:, None] & (j < K)[None, :]
    v_ptr += b * v_sb + n * v_sn
    u_ptr += b * u_sb + n * u_sn
    if DOTS:
        here = load_vectors(v_ptr, h, w, w < W, W, v_st, d, D)
    else:
        total = tl.zeros([Q, BD], tl.float32)
    for i in range(K):
        row, columns, _their_row, _theirs, valid = neighbours(
            row_start, row_group, row_length, i, start, group, length, row_dilation, dilation, w, W, K, J)
        at = token[:, None] * (K * K) + i * K + j[None, :]
        if DOTS:
            p = tl.sum(here[:, None, :] * load_vectors(u_ptr, row, columns, valid, W, u_st, d, D), 2)
            tl.store(out_ptr + at, p.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            p = tl.load(weights_ptr + at, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(p[:, :, None] * load_vectors(v_ptr, row, columns, valid, W, v_st, d, D), 1)
    if not DOTS:
        at = token[:, None] * D + d[None, :]
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=(w < W)[:, None] & (d < D)[None, :])


@triton.jit
def takers(rank, length, K: tl.constexpr):
    """First and last rank in a class of those whose window holds this one."""
    first = tl.where(rank < K, 0, rank - K // 2)
    return first, tl.where(rank >= length - K, length - 1, rank + K // 2)


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation"])
def spread_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    x_ptr,  # [B, H, W, n, D]
    out_ptr,  # [B, H, W, n, D], contiguous
    x_sb, x_st, x_sn,
    H, W, heads, row_dilation, dilation,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,  # at least 2 K - 1, which is how many windows along an axis can hold one place
    Q: tl.constexpr,
):  # fmt: skip
    """The transpose of the sums over windows: for every place those of all windows that hold it, without atomics."""
    b, h, w, n = place_of_program(H, W, heads, Q)
    d, j = tl.arange(0, BD), tl.arange(0, J)
    row_rank, row_group, row_length, _row_start = axis(h, H, row_dilation, K)
    rank, group, length, _start = axis(w, W, dilation, K)
    row_first, row_last = takers(row_rank, row_length, K)
    first, last = takers(rank, length, K)
    theirs = first[:, None] + j[None, :]
    valid = (theirs <= last[:, None]) & (w < W)[:, None]
    columns = theirs * dilation + group[:, None]
    slot = rank[:, None] - tl.maximum(tl.minimum(theirs - K // 2, length[:, None] - K), 0)
    x_ptr += b * x_sb + n * x_sn
    total = tl.zeros([Q, BD], tl.float32)
    for their_row in range(row_first, row_last + 1):
        row = their_row * row_dilation + row_group
        row_slot = row_rank - tl.maximum(tl.minimum(their_row - K // 2, row_length - K), 0)
        at = (((b * H + row) * W + columns) * heads + n) * (K * K) + row_slot * K + slot
        p = tl.load(weights_ptr + at, mask=valid, other=0.0).to(tl.float32)
        total += tl.sum(p[:, :, None] * load_vectors(x_ptr, row, columns, valid, W, x_st, d, D), 1)
    at = (((b * H + h) * W + w) * heads + n)[:, None] * D + d[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=(w < W)[:, None] & (d < D)[None, :])


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


def _run(kernel, like: torch.Tensor, window: int, dilated: bool, taking: int, *arguments, **how) -> None:
    """Launch for maps of the shape of ``like``, where a position looks at ``taking`` others along each axis."""
    batch, height, width, heads, channels = like.shape
    row_dilation, dilation = (max(1, min(extent // window, window)) if dilated else 1 for extent in (height, width))
    wide = pow2(taking, 4)
    columns = min(_COLUMNS if wide <= 16 else _COLUMNS // 2, pow2(width, 4))
    launch(
        kernel, (batch * height * heads * cdiv(width, columns),), *arguments, height, width, heads, row_dilation,
        dilation, D=channels, BD=pow2(channels), K=window, J=wide, Q=columns, **how,
    )  # fmt: skip


def _strides(t: torch.Tensor) -> tuple[int, int, int]:
    """Of images, tokens and heads."""
    return t.stride(0), t.stride(2), t.stride(3)


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
    _run(weights_kernel, q, window, dilated, window, q, k, bias.float().contiguous(), out, *_strides(q), *_strides(k))
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
    _run(scores_backward_kernel, q, window, dilated, window, weights.contiguous(), dweights.contiguous(), k, dscores,
         dq, *_strides(k))  # fmt: skip
    _run(spread_kernel, q, window, dilated, 2 * window - 1, dscores, q, dk, *_strides(q))
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
    _run(window_gather_kernel, v, window, dilated, window, weights.contiguous(), v, v, out, *_strides(v), *_strides(v),
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
    _run(window_gather_kernel, v, window, dilated, window, weights, dy, v, dweights, *_strides(dy), *_strides(v),
         DOTS=True)  # fmt: skip
    _run(spread_kernel, v, window, dilated, 2 * window - 1, weights, dy, dv, *_strides(dy))
    return dweights, dv
