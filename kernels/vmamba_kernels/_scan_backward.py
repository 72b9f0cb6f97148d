"""Backward kernel of a selective scan with any number of states, over any strides; see ``_scan_forward``."""

import triton
import triton.language as tl

from ._delta import load_weights
from ._primitives import (
    LN2,
    LOG2E,
    TABLE,
    ex2,
    lane_sums,
    lane_sums_step,
    pack16,
    reverse,
    row_selectors,
    softplus2,
    tf32,
    unpack16,
)
from ._scan_forward import column16, scan_delta, spread_column
from ._walk import direction, tile_positions


@triton.jit
def tile_state(first, saved_at, scratch_at, ok):
    """State before a tile: the saved one before the group's first, else the recomputed one."""
    saved = tl.load(saved_at, mask=ok & first, other=0.0)
    return saved + tl.load(scratch_at, mask=ok & (first == 0), other=0.0)


@triton.jit(do_not_specialize=["B", "L", "visits", "height", "width", "reciprocal", "every", "N", "G"])
def scan_bwd_kernel(
    dy_ptr,  # [B, L, G, C] by strides
    x_ptr,  # [B, L, G, C] by strides
    delta_ptr,  # [B, L, G, C] by strides, only for R == 0
    factors_ptr,  # [B, L, G, R] by strides f_sb, f_sl, f_sg, 1; only for R > 0
    weight_ptr,  # [G, C, R]
    bias_ptr,  # [G, C]
    a_ptr,  # [G, N, C]: A, not its logarithm
    b_ptr,  # [B, G, N, L] by strides bc_*
    c_ptr,  # likewise
    skip_ptr,  # [G, C]
    states_ptr,  # [B, G, groups of tiles, N, C] fp32: state before each group
    dlast_ptr,  # [B, G, N, C] fp32: gradient to the last state
    scratch_ptr,  # [B, G, every, N, C] fp32: states before the tiles of the group at hand
    carry_ptr,  # [B, G, N, C] fp32: a_{t+1} g_{t+1}; at the end the gradient to the initial state
    da_ptr,  # [B, G, N, C] fp32
    dvec_ptr,  # [B, 2, G, C] fp32: delta bias, D
    dx_ptr,  # [B, L, G, C] by strides
    dz_ptr,  # [B, L, G, C] by strides: gradient to delta's pre-activation
    dbc_ptr,  # [blocks, B, G, 2, N, L] fp32: B and C
    index_ptr,
    dy_sb, dy_sl, dy_sg, dy_sc,
    x_sb, x_sl, x_sg, x_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    b_sb, b_sl, b_sg, b_sn,
    c_sb, c_sl, c_sg, c_sn,
    dx_sb, dx_sl, dx_sg, dx_sc,
    dz_sb, dz_sl, dz_sg, dz_sc,
    B, L, visits, height, width, reciprocal, every, N, G,
    C: tl.constexpr,
    K: tl.constexpr,  # directions; groups are directions if K > 1
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_DLAST: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = (C + 31) // 32
    TENSOR_SUMS: tl.constexpr = FAST and not PRECISE
    ROUND: tl.constexpr = TENSOR_SUMS and x_ptr.dtype.element_ty == tl.float16
    pid = tl.program_id(0)
    block = pid % BLOCKS
    g = pid // BLOCKS % G
    b = (pid // (BLOCKS * G)).to(tl.int64)
    g64 = g.to(tl.int64)

    step, mirror = direction(g, K, L, width, ORDER)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < C
    tiles = tl.cdiv(visits, 16)
    groups = tl.cdiv(tiles, every)
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
    select = row_selectors()

    d64 = d[None, :].to(tl.int64)
    dy_base = dy_ptr + b * dy_sb + g64 * dy_sg + d64 * dy_sc
    x_base = x_ptr + b * x_sb + g64 * x_sg + d64 * x_sc
    dx_base = dx_ptr + b * dx_sb + g64 * dx_sg + d64 * dx_sc
    dz_base = dz_ptr + b * dz_sb + g64 * dz_sg + d64 * dz_sc
    b_base = b_ptr + b * b_sb + g64 * b_sg
    c_base = c_ptr + b * c_sb + g64 * c_sg
    d_off = tl.zeros([1, 32], tl.int64)
    if R == 0:
        d_off = b * d_sb + g64 * d_sg + d64 * d_sc
    f_base = b * f_sb + g64 * f_sg
    bg = b * G + g
    a_base = a_ptr + g64 * N * C + d
    states_base = states_ptr + bg * groups * N * C + d
    scratch_base = scratch_ptr + bg * every * N * C + d
    carry_base = carry_ptr + bg * N * C + d
    da_base = da_ptr + bg * N * C + d
    dbc_base = dbc_ptr + ((block.to(tl.int64) * B + b) * G + g) * 2 * N * L

    dlast_base = carry_base
    if HAS_DLAST:
        dlast_base = dlast_ptr + bg * N * C + d

    zero = tl.zeros([32], tl.float32)
    sum_bias = zero
    sum_skip = zero
    tile_t = tl.arange(0, 16)
    for back in range(0, groups):
        group = groups - 1 - back
        first = group * every
        count = tl.minimum(every, tiles - first)

        # states before the group's later tiles
        for i in range(0, count - 1):
            tile = first + i
            p, ok_t = tile_positions(tile * 16 + tile_t, walk, visits, step, mirror, L, height, reciprocal, ORDER)
            at = p.to(tl.int64)
            ok = ok_t[:, None] & d_ok[None, :]
            xs = unpack16(tl.load(x_base + at[:, None] * x_sl, mask=ok, other=0.0))
            f_at = f_base + at * f_sl
            z2 = scan_delta(
                delta_ptr, d_off + at[:, None] * d_sl, factors_ptr, f_at, weights, bias, d_ok, ok_t, R, FAST
            )
            delta2 = ()
            v = ()
            for t in tl.static_range(16):
                if SOFTPLUS:
                    dl = softplus2(z2[t], FAST, PRECISE)
                else:
                    dl = z2[t]
                delta2 = delta2 + (dl,)
                v = v + (dl * xs[t].to(tl.float32) * LN2,)
            a_n = tl.load(a_base, mask=d_ok, other=0.0)
            b_n = column16(b_base + at * b_sl, ok_t)
            h = tile_state(i == 0, states_base + group.to(tl.int64) * N * C, scratch_base + i * N * C, d_ok)
            for n in range(0, N):
                more = n + 1 < N
                a_next = tl.load(a_base + (n + 1) * C, mask=d_ok & more, other=0.0)
                b_next = column16(b_base + at * b_sl + (n + 1) * b_sn, ok_t & more)
                h_next = tile_state(
                    i == 0,
                    states_base + (group.to(tl.int64) * N + n + 1) * C,
                    scratch_base + (i * N + n + 1) * C,
                    d_ok & more,
                )
                b_s = spread_column(b_n)
                for t in tl.static_range(16):
                    h = ex2(a_n * delta2[t], FAST) * h + b_s[t] * v[t]
                tl.store(scratch_base + ((i + 1) * N + n) * C, h, mask=d_ok)
                a_n = a_next
                b_n = b_next
                h = h_next

        for j in range(0, count):
            i = count - 1 - j
            tile = first + i
            p, ok_t = tile_positions(tile * 16 + tile_t, walk, visits, step, mirror, L, height, reciprocal, ORDER)
            at = p.to(tl.int64)
            ok = ok_t[:, None] & d_ok[None, :]
            xs = unpack16(tl.load(x_base + at[:, None] * x_sl, mask=ok, other=0.0))
            dys = unpack16(tl.load(dy_base + at[:, None] * dy_sl, mask=ok, other=0.0).to(tl.float32))
            f_at = f_base + at * f_sl
            z2 = scan_delta(
                delta_ptr, d_off + at[:, None] * d_sl, factors_ptr, f_at, weights, bias, d_ok, ok_t, R, FAST
            )
            delta2 = ()
            v = ()
            gb_sum = ()
            ga_sum = ()
            for t in tl.static_range(16):
                if SOFTPLUS:
                    dl = softplus2(z2[t], FAST, PRECISE)
                else:
                    dl = z2[t]
                dl = tl.where(tile * 16 + t < visits, dl, 0.0)  # past the end the state stays what it is
                delta2 = delta2 + (dl,)
                v = v + (dl * xs[t].to(tl.float32) * LN2,)
                gb_sum = gb_sum + (zero,)
                ga_sum = ga_sum + (zero,)
            a_n = tl.load(a_base, mask=d_ok, other=0.0)
            b_n = column16(b_base + at * b_sl, ok_t)
            c_n = column16(c_base + at * c_sl, ok_t)
            h = tile_state(i == 0, states_base + group.to(tl.int64) * N * C, scratch_base + i * N * C, d_ok)
            later = tile < tiles - 1
            d_a = tl.load(da_base, mask=d_ok & later, other=0.0)
            carry = tl.load(carry_base, mask=d_ok & later, other=0.0)
            if HAS_DLAST:
                carry += tl.load(dlast_base, mask=d_ok & (later == 0), other=0.0)
            for n in range(0, N):
                # a state's values are loaded one state ahead
                more = n + 1 < N
                a_next = tl.load(a_base + (n + 1) * C, mask=d_ok & more, other=0.0)
                b_next = column16(b_base + at * b_sl + (n + 1) * b_sn, ok_t & more)
                c_next = column16(c_base + at * c_sl + (n + 1) * c_sn, ok_t & more)
                h_next = tile_state(
                    i == 0,
                    states_base + (group.to(tl.int64) * N + n + 1) * C,
                    scratch_base + (i * N + n + 1) * C,
                    d_ok & more,
                )
                d_a_next = tl.load(da_base + (n + 1) * C, mask=d_ok & later & more, other=0.0)
                carry_next = tl.load(carry_base + (n + 1) * C, mask=d_ok & later & more, other=0.0)
                if HAS_DLAST:
                    carry_next += tl.load(dlast_base + (n + 1) * C, mask=d_ok & (later == 0) & more, other=0.0)
                b_s = spread_column(b_n)
                c_s = spread_column(c_n)
                decay = ()
                states = (h,)
                for t in tl.static_range(16):
                    a = ex2(a_n * delta2[t], FAST)
                    h = a * h + b_s[t] * v[t]
                    decay = decay + (a,)
                    states = states + (h,)
                new_gb = ()
                new_ga = ()
                gv_r = ()
                dyh_r = ()
                sum_gv = (zero, zero, zero, zero)
                sum_dyh = (zero, zero, zero, zero)
                for t in tl.static_range(15, -1, -1):
                    g_h = c_s[t] * dys[t] + carry
                    carry = decay[t] * g_h
                    g_kept = carry * states[t]
                    d_a += g_kept * delta2[t]
                    new_gb = new_gb + (gb_sum[t] + g_h * b_s[t],)
                    new_ga = new_ga + (ga_sum[t] + a_n * g_kept,)
                    gv_r = gv_r + (tf32(g_h * v[t], ROUND),)
                    dyh_r = dyh_r + (tf32(dys[t] * states[t + 1], ROUND),)
                    if TENSOR_SUMS and t % 2 == 0:
                        sum_gv = lane_sums_step(sum_gv, select, gv_r[15 - t], gv_r[14 - t], t // 2)
                        sum_dyh = lane_sums_step(sum_dyh, select, dyh_r[15 - t], dyh_r[14 - t], t // 2)
                gb_sum = reverse(new_gb)
                ga_sum = reverse(new_ga)
                if TENSOR_SUMS:
                    db = lane_sums(sum_gv)
                    dc = lane_sums(sum_dyh)
                else:
                    db = tl.sum(pack16(reverse(gv_r)), 0)
                    dc = tl.sum(pack16(reverse(dyh_r)), 0)
                tl.store(dbc_base + n * L + at, db, mask=ok_t)
                tl.store(dbc_base + (N + n) * L + at, dc, mask=ok_t)
                tl.store(carry_base + n * C, carry, mask=d_ok)
                tl.store(da_base + n * C, d_a, mask=d_ok)
                a_n = a_next
                b_n = b_next
                c_n = c_next
                h = h_next
                d_a = d_a_next
                carry = carry_next

            dxs = ()
            dzs = ()
            for t in tl.static_range(16):
                x = xs[t].to(tl.float32)
                dx = LN2 * gb_sum[t] * delta2[t]
                if HAS_SKIP:
                    dx += skip * dys[t]
                    sum_skip += dys[t] * x
                dz = gb_sum[t] * x + ga_sum[t]
                if SOFTPLUS:
                    dz = dz * ex2(z2[t] - delta2[t], FAST)
                dz = tl.where(tile * 16 + t < visits, dz, 0.0)
                sum_bias += dz
                dxs = dxs + (dx,)
                dzs = dzs + (dz,)
            tl.store(dx_base + at[:, None] * dx_sl, tl.trans(pack16(dxs)).to(dx_ptr.dtype.element_ty), mask=ok)
            tl.store(dz_base + at[:, None] * dz_sl, tl.trans(pack16(dzs)).to(dz_ptr.dtype.element_ty), mask=ok)

    # d_a holds the gradient to A over ln 2
    for n in range(0, N):
        tl.store(da_base + n * C, tl.load(da_base + n * C, mask=d_ok, other=0.0) * LN2, mask=d_ok)
    out = dvec_ptr + (b * 2 * G + g) * C + d
    tl.store(out, sum_bias, mask=d_ok)
    tl.store(out + G * C, sum_skip, mask=d_ok)
