"""Kernels of neighbourhood attention.

Along an axis positions fall into as many interleaved classes as the dilation; a window is K neighbours of one class,
moved inwards at the ends of the class. A program takes a few positions of one row and class, which follow each other
within the class: a row of their windows is a scalar, and the windows' columns overlap so much that a product of
matrices, of all its positions with all columns that any of them looks at, costs less than the band that is needed.
"""

import triton
import triton.language as tl

from ._delta import product
from ._primitives import LOG2E, ex2


@triton.jit
def products(a, b, FAST: tl.constexpr):
    """a @ b in float32, operands of two types as float32."""
    acc = tl.zeros([a.shape[0], b.shape[1]], tl.float32)
    if a.dtype == b.dtype:
        return product(a, b, acc, FAST)
    else:
        return product(a.to(tl.float32), b.to(tl.float32), acc, FAST)


@triton.jit
def class_length(group, extent, dilation):
    """Places of a class of an axis."""
    return (extent - 1 - group) // dilation + 1


@triton.jit
def window_start(rank, length, K: tl.constexpr):
    """First rank of the window of the place with this rank in a class of that length."""
    return tl.maximum(tl.minimum(rank - K // 2, length - K), 0)


@triton.jit
def place_of_program(H, W, heads, row_dilation, dilation, blocks, Q: tl.constexpr):
    """Image, head and row; the row's rank in its class, that class and its length; ranks [Q] of the columns, and so on.

    Last the number of the row's first token and head, with which offsets within a row stay small.
    """
    pid = tl.program_id(0)
    rank = pid % blocks * Q + tl.arange(0, Q)
    group = pid // blocks % dilation
    n = pid // blocks // dilation % heads
    h = pid // blocks // dilation // heads % H
    b = (pid // blocks // dilation // heads // H).to(tl.int64)
    row_group = h % row_dilation
    return (
        b, n, h, h // row_dilation, row_group, class_length(row_group, H, row_dilation), rank, group,
        class_length(group, W, dilation), (b * H + h) * W * heads,
    )  # fmt: skip


@triton.jit
def head_of(ptr, b, n, image_stride, head_stride, VECTOR: tl.constexpr):
    """Where a head of an image begins; everything lies at multiples of VECTOR elements."""
    return ptr + tl.multiple_of(b * image_stride + n * head_stride, VECTOR)


@triton.jit
def columns_of(rank, group, dilation, stride, VECTOR: tl.constexpr):
    """Offsets of columns from the beginning of their row."""
    return tl.multiple_of((rank * dilation + group) * stride, VECTOR)


@triton.jit
def load_row(head_ptr, row, columns, valid, W, stride, D: tl.constexpr, BD: tl.constexpr, VECTOR: tl.constexpr):
    """Vectors of a head in some columns of one row, [columns, BD]; zero where not valid."""
    d = tl.arange(0, BD)
    start = head_ptr + tl.multiple_of((row * W).to(tl.int64) * stride, VECTOR)
    return tl.load(start + columns[:, None] + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_row(ptr, x, first, token, valid, D: tl.constexpr, BD: tl.constexpr):
    """Write vectors x [tokens, BD] to a contiguous map, from the token ``first`` on."""
    d = tl.arange(0, BD)
    tl.store(ptr + first * D + token[:, None] * D + d[None, :], x.to(ptr.dtype.element_ty),
             mask=valid[:, None] & (d < D)[None, :])  # fmt: skip


@triton.jit
def band_of(rank, length, K: tl.constexpr, N: tl.constexpr):
    """Of the windows of positions [Q] along the row: the ranks [N] they look at, as which of theirs [Q, N], and
    whether it is one of theirs.
    """
    theirs = window_start(tl.min(rank, 0), length, K) + tl.arange(0, N)
    slot = theirs[None, :] - window_start(rank, length, K)[:, None]
    return theirs, slot, (slot >= 0) & (slot < K) & (rank < length)[:, None]


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation", "blocks"])
def weights_kernel(
    q_ptr,  # [B, H, W, n, D], strides (q_sb, q_st of a token, q_sn, 1)
    k_ptr,
    bias_ptr,  # [n, 2 K - 1, 2 K - 1] float32
    out_ptr,  # [B, H, W, n, K * K], contiguous
    q_sb, q_st, q_sn, k_sb, k_st, k_sn,
    H, W, heads, row_dilation, dilation, blocks,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,  # columns that the positions of a program look at, at most
    Q: tl.constexpr,
    VECTOR: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Weights of a few positions of one row."""
    b, n, h, row_rank, row_group, row_length, rank, group, length, first = place_of_program(
        H, W, heads, row_dilation, dilation, blocks, Q)
    theirs, slot, band = band_of(rank, length, K, N)
    q_columns = columns_of(rank, group, dilation, q_st, VECTOR)
    k_columns = columns_of(theirs, group, dilation, k_st, VECTOR)
    q = load_row(head_of(q_ptr, b, n, q_sb, q_sn, VECTOR), h, q_columns, rank < length, W, q_st, D, BD, VECTOR)
    k_head = head_of(k_ptr, b, n, k_sb, k_sn, VECTOR)
    their_row = window_start(row_rank, row_length, K)
    bias_ptr += (n * (2 * K - 1) + their_row - row_rank + K - 1) * (2 * K - 1) + K - 1
    distance = theirs[None, :] - rank[:, None]
    valid = band & (theirs < length)[None, :]
    scores = ()
    largest = tl.full([Q, N], -1.0e38, tl.float32)  # finite, times LOG2E too: a place outside gives no NaN
    for i in tl.static_range(K):
        there = their_row + i < row_length
        k = load_row(k_head, (their_row + i) * row_dilation + row_group, k_columns, (theirs < length) & there, W, k_st,
                     D, BD, VECTOR)  # fmt: skip
        bias = tl.load(bias_ptr + i * (2 * K - 1) + distance, mask=valid & there, other=float("-inf"))
        s = products(q, tl.trans(k), FAST) + bias
        largest = tl.maximum(largest, s)
        scores = scores + (s,)
    shift = (tl.max(largest, 1) * LOG2E)[:, None]
    total = tl.zeros([Q, N], tl.float32)
    parts = ()
    for i in tl.static_range(K):
        e = ex2(scores[i] * LOG2E - shift, FAST)
        total += e
        parts = parts + (e,)
    scale = 1.0 / tl.maximum(tl.sum(total, 1), 1e-30)  # the sum is 1 at least, but outside
    at = ((rank * dilation + group) * heads + n)[:, None] * (K * K) + slot
    for i in tl.static_range(K):
        p = parts[i] * scale[:, None]
        tl.store(out_ptr + first * (K * K) + i * K + at, p.to(out_ptr.dtype.element_ty), mask=band)


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation", "blocks"])
def scores_backward_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    dweights_ptr,  # the same
    k_ptr,  # [B, H, W, n, D]
    dscores_ptr,  # as the weights
    dq_ptr,  # [B, H, W, n, D], contiguous
    k_sb, k_st, k_sn,
    H, W, heads, row_dilation, dilation, blocks,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    VECTOR: tl.constexpr,
    FAST: tl.constexpr,
    KK: tl.constexpr,  # power of two >= K * K
):  # fmt: skip
    """Gradients to the scores before the softmax, and to q."""
    b, n, _h, row_rank, row_group, row_length, rank, group, length, first = place_of_program(
        H, W, heads, row_dilation, dilation, blocks, Q)
    theirs, slot, band = band_of(rank, length, K, N)
    k_columns = columns_of(theirs, group, dilation, k_st, VECTOR)
    k_head = head_of(k_ptr, b, n, k_sb, k_sn, VECTOR)
    their_row = window_start(row_rank, row_length, K)
    token = (rank * dilation + group) * heads + n
    weights_ptr += first * (K * K)
    dweights_ptr += first * (K * K)
    dscores_ptr += first * (K * K)
    jj = tl.arange(0, KK)
    flat = token[:, None] * (K * K) + jj[None, :]
    inside = (rank < length)[:, None] & (jj < K * K)[None, :]
    p = tl.load(weights_ptr + flat, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(p * tl.load(dweights_ptr + flat, mask=inside, other=0.0).to(tl.float32), 1)
    at = token[:, None] * (K * K) + slot
    dq = tl.zeros([Q, BD], tl.float32)
    for i in range(K):
        w = tl.load(weights_ptr + i * K + at, mask=band, other=0.0).to(tl.float32)
        ds = w * (tl.load(dweights_ptr + i * K + at, mask=band, other=0.0).to(tl.float32) - total[:, None])
        ds = ds.to(dscores_ptr.dtype.element_ty)
        tl.store(dscores_ptr + i * K + at, ds, mask=band)
        k = load_row(k_head, (their_row + i) * row_dilation + row_group, k_columns,
                     (theirs < length) & (their_row + i < row_length), W, k_st, D, BD, VECTOR)  # fmt: skip
        dq += products(ds, k, FAST)
    store_row(dq_ptr, dq, first, token, rank < length, D, BD)


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation", "blocks"])
def window_gather_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    v_ptr,  # [B, H, W, n, D], the values at the neighbours
    y_ptr,  # [B, H, W, n, D], in the dot products' case: the gradient to y at the positions themselves
    out_ptr,  # [B, H, W, n, D], contiguous; [B, H, W, n, K * K] in the dot products' case
    v_sb, v_st, v_sn, y_sb, y_st, y_sn,
    H, W, heads, row_dilation, dilation, blocks,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    VECTOR: tl.constexpr,
    FAST: tl.constexpr,
    DOTS: tl.constexpr,  # products of y with its neighbours in v, instead of sums of v's neighbours by weights
):  # fmt: skip
    """Sums over windows, or their gradient to the weights."""
    b, n, h, row_rank, row_group, row_length, rank, group, length, first = place_of_program(
        H, W, heads, row_dilation, dilation, blocks, Q)
    theirs, slot, band = band_of(rank, length, K, N)
    v_columns = columns_of(theirs, group, dilation, v_st, VECTOR)
    v_head = head_of(v_ptr, b, n, v_sb, v_sn, VECTOR)
    their_row = window_start(row_rank, row_length, K)
    token = (rank * dilation + group) * heads + n
    at = token[:, None] * (K * K) + slot
    if DOTS:
        y_columns = columns_of(rank, group, dilation, y_st, VECTOR)
        y = load_row(head_of(y_ptr, b, n, y_sb, y_sn, VECTOR), h, y_columns, rank < length, W, y_st, D, BD, VECTOR)
        out_ptr += first * (K * K)
    else:
        total = tl.zeros([Q, BD], tl.float32)
        weights_ptr += first * (K * K)
    for i in range(K):
        v = load_row(v_head, (their_row + i) * row_dilation + row_group, v_columns,
                     (theirs < length) & (their_row + i < row_length), W, v_st, D, BD, VECTOR)  # fmt: skip
        if DOTS:
            tl.store(out_ptr + i * K + at, products(y, tl.trans(v), FAST).to(out_ptr.dtype.element_ty), mask=band)
        else:
            total += products(tl.load(weights_ptr + i * K + at, mask=band, other=0.0), v, FAST)
    if not DOTS:
        store_row(out_ptr, total, first, token, rank < length, D, BD)


@triton.jit
def first_taker(rank, K: tl.constexpr):
    """First rank of those whose window holds the place with this rank."""
    return tl.where(rank < K, 0, rank - K // 2)


@triton.jit(do_not_specialize=["H", "W", "heads", "row_dilation", "dilation", "blocks"])
def spread_kernel(
    weights_ptr,  # [B, H, W, n, K * K], contiguous
    x_ptr,  # [B, H, W, n, D]
    out_ptr,  # [B, H, W, n, D], contiguous
    x_sb, x_st, x_sn,
    H, W, heads, row_dilation, dilation, blocks,
    D: tl.constexpr,
    BD: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,  # columns whose windows hold one of the positions of a program, at most
    Q: tl.constexpr,
    VECTOR: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """The transpose of the sums over windows: for every place those of all windows that hold it, without atomics."""
    b, n, _h, row_rank, row_group, row_length, rank, group, length, first = place_of_program(
        H, W, heads, row_dilation, dilation, blocks, Q)
    row_last = tl.where(row_rank >= row_length - K, row_length - 1, row_rank + K // 2)
    theirs = first_taker(tl.min(rank, 0), K) + tl.arange(0, N)
    slot = rank[None, :] - window_start(theirs, length, K)[:, None]
    valid = (slot >= 0) & (slot < K) & (theirs < length)[:, None] & (rank < length)[None, :]
    at = ((theirs * dilation + group) * heads + n)[:, None] * (K * K) + slot
    x_columns = columns_of(theirs, group, dilation, x_st, VECTOR)
    x_head = head_of(x_ptr, b, n, x_sb, x_sn, VECTOR)
    total = tl.zeros([Q, BD], tl.float32)
    for their_row in range(first_taker(row_rank, K), row_last + 1):
        row = their_row * row_dilation + row_group
        row_slot = row_rank - window_start(their_row, row_length, K)
        p = tl.load(weights_ptr + (b * H + row) * W * heads * (K * K) + row_slot * K + at, mask=valid, other=0.0)
        x = load_row(x_head, row, x_columns, theirs < length, W, x_st, D, BD, VECTOR)
        total += products(tl.trans(p), x, FAST)
    store_row(out_ptr, total, first, (rank * dilation + group) * heads + n, rank < length, D, BD)
