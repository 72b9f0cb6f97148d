"""Splitting a long sequence when images and channels alone cannot fill the device.

The visits of a direction are cut into segments. A first pass finds what each segment does to a state that enters it
(``end + decay * state``); a chain over the segments gives every segment's entry; then all segments run at once in the
ordinary kernels. The same works backwards for the adjoint.
"""

import triton
import triton.language as tl

from ._memory import load_states, store_states, uniform8
from ._primitives import TABLE, ex2
from ._scan_forward import (
    SEQUENCE,
    inputs,
    load_channels,
    load_delta_weights,
    place,
    read_tile,
    scan_delta,
    step_sizes,
    store_tile,
    vectors,
)
from ._walk import direction


@triton.jit(do_not_specialize=SEQUENCE)
def segment_kernel(
    in_ptr,  # x [B, L, G, C] by strides; for the adjoint dy, likewise
    delta_ptr,  # [B, L, G, C] by strides, only for R == 0
    factors_ptr,  # [B, L, G, R] by strides f_sb, f_sl, f_sg, 1; only for R > 0
    weight_ptr,  # [G, C, R]
    bias_ptr,  # [G, C]
    a_ptr,  # [G, N, C]
    bc_ptr,  # [B, G, tiles, N, 2, 8], see _scan_arrange
    end_ptr,  # [B, G, segments, N, C] fp32: what a segment makes of a zero state
    total_ptr,  # [B, G, segments, C] fp32: sum of delta, in units of log 2
    index_ptr,
    in_sb, in_sl, in_sg, in_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    L, visits, height, width, reciprocal, tiles, segments, span, G,
    N: tl.constexpr,
    NB: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADJOINT: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """End states (or, backwards, the adjoint carries) of one segment begun at zero."""
    b, segment, g, _, d, d_ok = place(tl.program_id(0), segments, G, C)
    step, mirror = direction(g, K, L, width, ORDER)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g * visits
    bias = load_channels(bias_ptr, g * C + d, d_ok, HAS_BIAS)
    factors_type: tl.constexpr = factors_ptr.dtype.element_ty if R > 0 else tl.float32
    weights = load_delta_weights(weight_ptr, g * C * R, d, d_ok, R, factors_type)
    d64 = d[None, :].to(tl.int64)
    in_off = b * in_sb + g * in_sg + d64 * in_sc
    d_off = tl.zeros([1, 32], tl.int64)
    if R == 0:
        d_off = b * d_sb + g * d_sg + d64 * d_sc
    row = (b * G + g) * segments + segment
    end_base = end_ptr + row * N * C + d
    a_base = a_ptr + g * N * C + d
    bc_base = bc_ptr + (b * G + g) * tiles * N * 16

    total = tl.zeros([32], tl.float32)
    f_off = b * f_sb + g * f_sg
    begin = segment * span
    count = tl.minimum(span, tiles - begin)
    backwards: tl.constexpr = 1 if ADJOINT else 0
    _at, _ok, x, delta = read_tile(
        begin + (count - 1) * backwards, d_ok, in_ptr, in_off, in_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl,
        walk, visits, step, mirror, L, height, reciprocal, R, ORDER,
    )  # fmt: skip
    for i in range(0, count):
        tile = begin + i
        following = tile + 1
        if ADJOINT:
            tile = begin + count - 1 - i
            following = tl.maximum(tile - 1, 0)
        values = vectors(x)
        z2 = scan_delta(delta, weights, bias, R, FAST)
        _at, _ok, x, delta = read_tile(
            following, d_ok, in_ptr, in_off, in_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits,
            step, mirror, L, height, reciprocal, R, ORDER,
        )  # fmt: skip
        delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
        for t in tl.static_range(8):
            total += delta2[t]
        v = inputs(delta2, values)
        bc = bc_base + tl.cast(tile, tl.int64) * N * 16
        for n in range(0, N, NB):
            a = load_states(a_base + n * C, C, NB, d_ok, FAST)
            h = load_states(end_base + n * C, C, NB, d_ok & (i > 0), FAST)
            new_h = ()
            for m in tl.static_range(NB):
                h_n = h[m]
                if ADJOINT:
                    c_n = uniform8(bc + (n + m) * 16 + 8, FAST)
                    for t in tl.static_range(7, -1, -1):
                        h_n = ex2(a[m] * delta2[t], FAST) * (h_n + c_n[t] * values[t].to(tl.float32))
                else:
                    b_n = uniform8(bc + (n + m) * 16, FAST)
                    for t in tl.static_range(8):
                        h_n = tl.fma(ex2(a[m] * delta2[t], FAST), h_n, b_n[t] * v[t])
                new_h = new_h + (h_n,)
            store_states(end_base + n * C, C, new_h, d_ok, FAST)
    tl.store(total_ptr + row * C + d, total, mask=d_ok)


@triton.jit(do_not_specialize=["segments", "N", "G"])
def chain_kernel(
    end_ptr,  # [B, G, segments, N, C]
    total_ptr,  # [B, G, segments, C]
    a_ptr,  # [G, N, C]
    entry_ptr,  # [B, G, segments, N, C]
    first_ptr,  # [B, G, N, C]: what enters the first segment (backwards: the last)
    segments,
    N,
    G,
    C: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    ADJOINT: tl.constexpr,
    FAST: tl.constexpr,
):
    """entry[s + 1] = end[s] + exp(A * total[s]) * entry[s] for one state of 32 channels; the adjoint backwards."""
    b, _, g, _, d, d_ok = place(tl.program_id(0) // N, 1, G, C)
    n = tl.program_id(0) % N
    bg = b * G + g
    a = load_channels(a_ptr, (g * N + n) * C + d, d_ok, True)
    h = load_channels(first_ptr, (bg * N + n) * C + d, d_ok, HAS_FIRST)
    row = tl.arange(0, 8)
    for i in tl.range(0, tl.cdiv(segments, 8), num_stages=2):
        s = i * 8 + row
        at = bg * segments + tl.where(ADJOINT, segments - 1 - s, s)[:, None]
        ok = (s < segments)[:, None] & d_ok[None, :]
        end_at = (at * N + n) * C + d[None, :]
        ends = vectors(tl.load(end_ptr + end_at, mask=ok, other=0.0))
        totals = vectors(tl.load(total_ptr + at * C + d[None, :], mask=ok, other=0.0))
        entries = ()
        for t in tl.static_range(8):
            entries = entries + (h,)
            h = ends[t] + ex2(a * totals[t], FAST) * h
        store_tile(entry_ptr, end_at, entries, ok)
