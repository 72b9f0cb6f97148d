"""Forward kernel of a selective scan with any number of states, over any strides.

Serves ``selective_scan`` (delta given, G channel groups, one direction) and ``ss2d`` with N > 1 (delta from factors,
K directions): both are B x G scans of C channels, where a group owns parameters, B and C. The states of a channel are
walked one after the other within a tile of 16 visits, so that N costs no registers; between tiles they rest in
``last_ptr``.
"""

import triton
import triton.language as tl

from ._delta import load_weights, project
from ._primitives import LN2, LOG2E, TABLE, ex2, pack16, softplus2, spread16, unpack16
from ._walk import direction, tile_positions


@triton.jit
def column16(ptr, ok):
    """Load a vector [16] as two equal fp32 columns [16, 2]: a lone vector would be loaded again for every use."""
    two = tl.arange(0, 2) * 0
    return tl.load(ptr[:, None] + two[None, :], mask=ok[:, None], other=0.0).to(tl.float32)


@triton.jit
def spread_column(columns):
    """What ``column16`` loaded, spread over the lanes: 16 vectors [32]."""
    first, _ = tl.split(columns)
    return spread16(first, 32)


@triton.jit
def scan_delta(
    delta_ptr, delta_at, factors_ptr, factors_at, weights, bias, d_ok, ok_t, R: tl.constexpr, FAST: tl.constexpr
):
    """Pre-activations of delta in units of log 2: 16 vectors [32]. Given (R = 0), or from R factors."""
    if R == 0:
        z = tl.load(delta_ptr + delta_at, mask=ok_t[:, None] & d_ok[None, :], other=0.0).to(tl.float32) * LOG2E
        z = z + bias[None, :]
    else:
        z = tl.zeros([16, 32], tl.float32) + bias[None, :]
        for chunk in tl.static_range((R + 15) // 16):
            r = tl.arange(0, 16) + 16 * chunk
            tile = tl.load(
                factors_ptr + factors_at[:, None] + r[None, :], mask=ok_t[:, None] & (r < R)[None, :], other=0.0
            )
            z = project(tile, weights[chunk][0], weights[chunk][1], z, FAST)
    return unpack16(z)


@triton.jit
def state_before(first, initial_at, last_at, ok, HAS_INITIAL: tl.constexpr):
    """State before a tile: where the previous tile left it, or the initial one or zero before the first."""
    h = tl.load(last_at, mask=ok & (first == 0), other=0.0)
    if HAS_INITIAL:
        h += tl.load(initial_at, mask=ok & first, other=0.0).to(tl.float32)
    return h


@triton.jit(do_not_specialize=["L", "visits", "height", "width", "reciprocal", "every", "N", "G"])
def scan_fwd_kernel(
    x_ptr,  # [B, L, G, C] by strides
    delta_ptr,  # [B, L, G, C] by strides, only for R == 0
    factors_ptr,  # [B, L, G, R] by strides f_sb, f_sl, f_sg, 1; only for R > 0
    weight_ptr,  # [G, C, R]
    bias_ptr,  # [G, C]
    a_ptr,  # [G, N, C]: A, not its logarithm
    b_ptr,  # [B, G, N, L] by strides bc_*
    c_ptr,  # likewise
    skip_ptr,  # [G, C]
    gate_ptr,  # [B, L, G, C] by strides
    y_ptr,  # [B, L, G, C] by strides
    out_ptr,  # gated y, strides of y
    initial_ptr,  # [B, G, C, N]
    last_ptr,  # [B, G, N, C] fp32: running state, at the end the last one
    states_ptr,  # [B, G, groups of tiles, N, C] fp32: state before each group
    index_ptr,
    x_sb, x_sl, x_sg, x_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    b_sb, b_sl, b_sg, b_sn,
    c_sb, c_sl, c_sg, c_sn,
    z_sb, z_sl, z_sg, z_sc,
    y_sb, y_sl, y_sg, y_sc,
    L, visits, height, width, reciprocal, every, N, G,
    C: tl.constexpr,
    K: tl.constexpr,  # directions; groups are directions if K > 1
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (C + 31) // 32
    pid = tl.program_id(0)
    block = pid % BLOCKS
    g = pid // BLOCKS % G
    b = (pid // (BLOCKS * G)).to(tl.int64)
    g64 = g.to(tl.int64)

    step, mirror = direction(g, K, L, width, ORDER)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < C
    tiles = tl.cdiv(visits, 16)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g64 * visits

    if HAS_BIAS:
        bias = tl.load(bias_ptr + g64 * C + d, mask=d_ok, other=0.0).to(tl.float32) * LOG2E
    else:
        bias = tl.zeros([32], tl.float32)
    if HAS_SKIP:
        skip = tl.load(skip_ptr + g64 * C + d, mask=d_ok, other=0.0).to(tl.float32)
    weights = ()
    if R > 0:
        weights = load_weights(weight_ptr + g64 * C * R, d, d_ok, R, factors_ptr.dtype.element_ty)

    x_base = x_ptr + b * x_sb + g64 * x_sg + d[None, :].to(tl.int64) * x_sc
    y_off = b * y_sb + g64 * y_sg + d[None, :].to(tl.int64) * y_sc
    b_base = b_ptr + b * b_sb + g64 * b_sg
    c_base = c_ptr + b * c_sb + g64 * c_sg
    d_off = tl.zeros([1, 32], tl.int64)
    if R == 0:
        d_off = b * d_sb + g64 * d_sg + d[None, :].to(tl.int64) * d_sc
    last_base = last_ptr + (b * G + g) * N * C + d
    initial_base = last_base
    if HAS_INITIAL:
        initial_base = initial_ptr + ((b * G + g) * C + d) * N
    a_base = a_ptr + g64 * N * C + d
    groups = tl.cdiv(tiles, every)

    tile_t = tl.arange(0, 16)
    for tile in range(0, tiles):
        p, ok_t = tile_positions(tile * 16 + tile_t, walk, visits, step, mirror, L, height, reciprocal, ORDER)
        at = p.to(tl.int64)
        ok = ok_t[:, None] & d_ok[None, :]
        xs = unpack16(tl.load(x_base + at[:, None] * x_sl, mask=ok, other=0.0))
        z2 = scan_delta(
            delta_ptr, d_off + at[:, None] * d_sl, factors_ptr, b * f_sb + g64 * f_sg + at * f_sl, weights, bias, d_ok,
            ok_t, R, FAST,
        )  # fmt: skip
        delta2 = ()
        v = ()
        ys = ()
        for t in tl.static_range(16):
            if SOFTPLUS:
                dl = softplus2(z2[t], FAST, PRECISE)
            else:
                dl = z2[t]
            dl = tl.where(tile * 16 + t < visits, dl, 0.0)  # past the end the state stays what it is
            x = xs[t].to(tl.float32)
            delta2 = delta2 + (dl,)
            v = v + (dl * x * LN2,)
            if HAS_SKIP:
                ys = ys + (skip * x,)
            else:
                ys = ys + (tl.zeros([32], tl.float32),)
        if SAVE:
            save_now = tile % every == 0
            state_at = states_ptr + ((b * G + g) * groups + tile // every) * N * C + d
        # a state's values are loaded one state ahead
        a_n = tl.load(a_base, mask=d_ok, other=0.0)
        b_n = column16(b_base + at * b_sl, ok_t)
        c_n = column16(c_base + at * c_sl, ok_t)
        h = state_before(tile == 0, initial_base, last_base, d_ok, HAS_INITIAL)
        for n in range(0, N):
            more = n + 1 < N
            a_next = tl.load(a_base + (n + 1) * C, mask=d_ok & more, other=0.0)
            b_next = column16(b_base + at * b_sl + (n + 1) * b_sn, ok_t & more)
            c_next = column16(c_base + at * c_sl + (n + 1) * c_sn, ok_t & more)
            h_next = state_before(tile == 0, initial_base + n + 1, last_base + (n + 1) * C, d_ok & more, HAS_INITIAL)
            b_s = spread_column(b_n)
            c_s = spread_column(c_n)
            if SAVE:
                tl.store(state_at + n * C, h, mask=d_ok & save_now)
            new_y = ()
            for t in tl.static_range(16):
                h = ex2(a_n * delta2[t], FAST) * h + b_s[t] * v[t]
                new_y = new_y + (ys[t] + c_s[t] * h,)
            ys = new_y
            tl.store(last_base + n * C, h, mask=d_ok)
            a_n = a_next
            b_n = b_next
            c_n = c_next
            h = h_next
        y_tile = tl.trans(pack16(ys))
        y_at = y_off + at[:, None] * y_sl
        tl.store(y_ptr + y_at, y_tile.to(y_ptr.dtype.element_ty), mask=ok)
        if HAS_GATE:
            z_at = b * z_sb + g64 * z_sg + d[None, :].to(tl.int64) * z_sc + at[:, None] * z_sl
            gate = tl.load(gate_ptr + z_at, mask=ok, other=0.0).to(tl.float32)
            tl.store(out_ptr + y_at, (y_tile * (gate * tl.sigmoid(gate))).to(out_ptr.dtype.element_ty), mask=ok)
