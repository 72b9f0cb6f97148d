"""Backward kernel of a selective scan with any number of states, over any strides; see ``_scan_forward``."""

import triton
import triton.language as tl

from ._primitives import (
    LN2,
    TABLE,
    ex2,
    pack8,
    pair_place,
    pair_sums,
    reverse,
    row_selectors,
    tf32,
    touch,
    uniform8,
)
from ._scan_forward import (
    SEQUENCE,
    both,
    inputs,
    load_channels,
    load_delta_weights,
    load_states,
    load_tile,
    offsets,
    place,
    read_tile,
    rows_at,
    scan_delta,
    step_sizes,
    store_states,
    store_tile,
    vectors,
)
from ._walk import direction


@triton.jit
def tile_states(first, saved, scratch, d, C: tl.constexpr, NB: tl.constexpr, ok):
    """NB states before a tile: the saved ones before the group's first, else the recomputed ones."""
    return load_states(rows_at(tl.where(first, saved, scratch), d), C, NB, ok)


@triton.jit
def recompute(h, a_n, b_n, delta2, v, s: tl.constexpr, FAST: tl.constexpr):
    """Through a tile, for one block of channels: the decays, and the states before and after every visit."""
    decay = ()
    states = (h,)
    for t in tl.static_range(8):
        a = ex2(a_n * delta2[8 * s + t], FAST)
        h = tl.fma(a, h, b_n[t] * v[8 * s + t])
        decay = decay + (a,)
        states = states + (h,)
    return decay, states


@triton.jit
def store_sums(dbc_at, gv_r, dyh_r, select, ROUND: tl.constexpr, TENSOR_SUMS: tl.constexpr):
    """The tile's gradients to one state's B and C, [2, 8] fp32, from vectors over channels (last visit first)."""
    if TENSOR_SUMS:
        first_r = ()
        second_r = ()
        for t in tl.static_range(8):
            first_r = first_r + (tf32(gv_r[t], ROUND),)
            second_r = second_r + (tf32(dyh_r[t], ROUND),)
        place_in_tile, first = pair_place()
        tl.store(dbc_at + place_in_tile, pair_sums(select, first_r, second_r), mask=first)
    else:
        eight = tl.arange(0, 8)
        tl.store(dbc_at + eight, tl.sum(pack8(reverse(gv_r)), 0))
        tl.store(dbc_at + 8 + eight, tl.sum(pack8(reverse(dyh_r)), 0))


@triton.jit(do_not_specialize=[*SEQUENCE, "B", "every", "enters"])
def scan_bwd_kernel(
    dy_ptr,  # [B, L, G, C] by strides
    x_ptr,  # [B, L, G, C] by strides
    delta_ptr,  # [B, L, G, C] by strides, only for R == 0
    factors_ptr,  # [B, L, G, R] by strides f_sb, f_sl, f_sg, 1; only for R > 0
    weight_ptr,  # [G, C, R]
    bias_ptr,  # [G, C]
    a_ptr,  # [G, N, C]
    bc_ptr,  # [B, G, tiles, N, 2, 8], see _scan_arrange
    skip_ptr,  # [G, C]
    states_ptr,  # [B, G, groups of tiles, N, C] fp32: state before each group
    scratch_ptr,  # [B, G, segments, every, N, C] fp32: states before the tiles of the group at hand
    carry_ptr,  # [B, G, segments, N, C] fp32: a_{t+1} g_{t+1}; with ``enters`` it holds that from behind
    da_ptr,  # [B, G, segments, N, C] fp32
    dvec_ptr,  # [B, segments, 2, G, C] fp32: delta bias, D
    dx_ptr,  # [B, L, G, C] by strides
    dz_ptr,  # [B, L, G, C] by strides: gradient to delta's pre-activation
    dbc_ptr,  # [blocks, B, G, tiles, N, 2, 8] fp32: B and C
    index_ptr,
    dy_sb, dy_sl, dy_sg, dy_sc,
    x_sb, x_sl, x_sg, x_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    dx_sb, dx_sl, dx_sg, dx_sc,
    dz_sb, dz_sl, dz_sg, dz_sc,
    L, visits, height, width, reciprocal, tiles, segments, span, G,
    B, every, enters,
    N: tl.constexpr,
    NB: tl.constexpr,  # states at a time; N: their carries stay in registers
    SUB: tl.constexpr,  # blocks of 32 channels
    C: tl.constexpr,
    K: tl.constexpr,  # directions; groups are directions if K > 1
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    TENSOR_SUMS: tl.constexpr = FAST and not PRECISE
    ROUND: tl.constexpr = TENSOR_SUMS and x_ptr.dtype.element_ty == tl.float16
    b, segment, g, block, d, d_ok = place(tl.program_id(0), segments, G, C, SUB)
    step, mirror = direction(g, K, L, width, ORDER)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g * visits
    bias = load_channels(bias_ptr, g * C, d, d_ok, HAS_BIAS)
    skip = load_channels(skip_ptr, g * C, d, d_ok, HAS_SKIP)
    factors_type: tl.constexpr = factors_ptr.dtype.element_ty if R > 0 else tl.float32
    weights = load_delta_weights(weight_ptr, g * C * R, d, d_ok, R, factors_type)
    select = row_selectors()
    dy_off = offsets(b * dy_sb + g * dy_sg, d, dy_sc)
    x_off = offsets(b * x_sb + g * x_sg, d, x_sc)
    dx_off = offsets(b * dx_sb + g * dx_sg, d, dx_sc)
    dz_off = offsets(b * dz_sb + g * dz_sg, d, dz_sc)
    d_off = x_off
    if R == 0:
        d_off = offsets(b * d_sb + g * d_sg, d, d_sc)
    f_off = b * f_sb + g * f_sg
    bg = b * G + g
    row = bg * segments + segment
    a_base = a_ptr + g * N * C
    bc_base = bc_ptr + bg * tiles * N * 16
    dbc_base = dbc_ptr + ((tl.cast(block, tl.int64) * B + b) * G + g) * tiles * N * 16
    states_base = states_ptr + bg * tl.cdiv(tiles, every) * N * C
    scratch_base = scratch_ptr + row * every * N * C
    carry_base = carry_ptr + row * N * C
    da_base = da_ptr + row * N * C

    zero = tl.zeros([32], tl.float32)
    sum_bias = load_channels(bias_ptr, 0, d, d_ok, False)
    sum_skip = sum_bias
    if NB == N:
        a = load_states(rows_at(a_base, d), C, NB, d_ok)
        carries = load_states(rows_at(carry_base, d), C, NB, both(d_ok, enters != 0))
        d_as = ()
        for _ in tl.static_range(NB * SUB):
            d_as = d_as + (zero,)
    begin = segment * span
    end = tl.minimum(begin + span, tiles)
    groups = tl.cdiv(end - begin, every)  # a segment is a whole number of groups, but for the last
    for back in range(0, groups):
        first = begin + (groups - 1 - back) * every
        count = tl.minimum(every, end - first)
        saved = states_base + tl.cast(first // every, tl.int64) * N * C

        # states before the group's later tiles
        at, ok_t, x, delta = read_tile(
            first, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits, step,
            mirror, L, height, reciprocal, R, ORDER,
        )  # fmt: skip
        if NB == N:
            h = load_states(rows_at(saved, d), C, NB, d_ok)
        for i in range(0, count - 1):
            tile = first + i
            bc = bc_base + tl.cast(tile, tl.int64) * N * 16
            touch(bc + N * 16, N * 16, 32, FAST)  # the next tile's
            scratch = scratch_base + i * N * C
            if NB < N:
                a = load_states(rows_at(a_base, d), C, NB, d_ok)
                h = tile_states(i == 0, saved, scratch, d, C, NB, d_ok)
            xs = vectors(x)
            z2 = scan_delta(delta, weights, bias, R, FAST)
            at, ok_t, x, delta = read_tile(
                tile + 1, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits,
                step, mirror, L, height, reciprocal, R, ORDER,
            )  # fmt: skip
            delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
            v = inputs(delta2, xs)
            for n in range(0, N, NB):
                if NB < N:
                    ahead = tl.minimum(n + NB, N - NB) * C
                    a_next = load_states(rows_at(a_base + ahead, d), C, NB, d_ok)
                    h_next = tile_states(i == 0, saved + ahead, scratch + ahead, d, C, NB, d_ok)
                new_h = ()
                for m in tl.static_range(NB):
                    b_n = uniform8(bc + (n + m) * 16, FAST)
                    for s in tl.static_range(SUB):
                        h_n = h[m * SUB + s]
                        for t in tl.static_range(8):
                            decay = ex2(a[m * SUB + s] * delta2[8 * s + t], FAST)
                            h_n = tl.fma(decay, h_n, b_n[t] * v[8 * s + t])
                        new_h = new_h + (h_n,)
                store_states(rows_at(scratch + (N + n) * C, d), C, new_h, d_ok)
                h = new_h
                if NB < N:
                    a = a_next
                    h = h_next

        at, ok_t, x, delta = read_tile(
            first + count - 1, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk,
            visits, step, mirror, L, height, reciprocal, R, ORDER,
        )  # fmt: skip
        dy = load_tile(dy_ptr, dy_off, at * dy_sl, ok_t, d_ok)
        for j in range(0, count):
            i = count - 1 - j
            tile = first + i
            bc = bc_base + tl.cast(tile, tl.int64) * N * 16
            dbc = dbc_base + tl.cast(tile, tl.int64) * N * 16
            scratch = scratch_base + i * N * C
            touch(bc - N * 16, N * 16, 32, FAST)  # the next tile's
            for s in tl.static_range(SUB):
                touch(scratch - N * C + d[s] - d[s] % 32, N * C, C, FAST)
            xs = vectors(x)
            dys_given = vectors(dy)
            z2 = scan_delta(delta, weights, bias, R, FAST)
            at_next, ok_next, x, delta = read_tile(
                tl.maximum(tile - 1, 0), d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl,
                walk, visits, step, mirror, L, height, reciprocal, R, ORDER,
            )  # fmt: skip
            dy = load_tile(dy_ptr, dy_off, at_next * dy_sl, ok_next, d_ok)
            delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
            v = inputs(delta2, xs)
            dys = ()
            gb_sum = ()
            ga_sum = ()
            for k in tl.static_range(8 * SUB):
                dys = dys + (dys_given[k].to(tl.float32),)
                gb_sum = gb_sum + (zero,)
                ga_sum = ga_sum + (zero,)
            later = tile < end - 1
            for n in range(0, N, NB):
                h = tile_states(i == 0, saved + n * C, scratch + n * C, d, C, NB, d_ok)
                if NB < N:
                    a = load_states(rows_at(a_base + n * C, d), C, NB, d_ok)
                    carries = load_states(rows_at(carry_base + n * C, d), C, NB, both(d_ok, later | (enters != 0)))
                    d_as = load_states(rows_at(da_base + n * C, d), C, NB, both(d_ok, later))
                new_carries = ()
                new_d_as = ()
                for m in tl.static_range(NB):
                    b_n = uniform8(bc + (n + m) * 16, FAST)
                    c_n = uniform8(bc + (n + m) * 16 + 8, FAST)
                    all_gb = ()
                    all_ga = ()
                    gv_r = ()
                    dyh_r = ()
                    for _ in tl.static_range(8):
                        gv_r = gv_r + (zero,)
                        dyh_r = dyh_r + (zero,)
                    for s in tl.static_range(SUB):
                        a_n = a[m * SUB + s]
                        decay, states = recompute(h[m * SUB + s], a_n, b_n, delta2, v, s, FAST)
                        carry = carries[m * SUB + s]
                        d_a = d_as[m * SUB + s]
                        new_gb = ()
                        new_ga = ()
                        new_gv = ()
                        new_dyh = ()
                        for t in tl.static_range(7, -1, -1):
                            g_h = c_n[t] * dys[8 * s + t] + carry
                            carry = decay[t] * g_h
                            g_kept = carry * states[t]
                            d_a += g_kept * delta2[8 * s + t]
                            new_gb = new_gb + (gb_sum[8 * s + t] + g_h * b_n[t],)
                            new_ga = new_ga + (ga_sum[8 * s + t] + a_n * g_kept,)
                            new_gv = new_gv + (gv_r[7 - t] + g_h * v[8 * s + t],)
                            new_dyh = new_dyh + (dyh_r[7 - t] + dys[8 * s + t] * states[t + 1],)
                        all_gb = all_gb + reverse(new_gb)
                        all_ga = all_ga + reverse(new_ga)
                        gv_r = new_gv
                        dyh_r = new_dyh
                        new_carries = new_carries + (carry,)
                        new_d_as = new_d_as + (d_a,)
                    gb_sum = all_gb
                    ga_sum = all_ga
                    store_sums(dbc + (n + m) * 16, gv_r, dyh_r, select, ROUND, TENSOR_SUMS)
                if NB < N:
                    store_states(rows_at(carry_base + n * C, d), C, new_carries, d_ok)
                    store_states(rows_at(da_base + n * C, d), C, new_d_as, d_ok)
                else:
                    carries = new_carries
                    d_as = new_d_as

            dxs = ()
            dzs = ()
            new_bias = ()
            new_skip = ()
            for s in tl.static_range(SUB):
                bias_s = sum_bias[s]
                skip_s = sum_skip[s]
                for t in tl.static_range(8):
                    delta_t = delta2[8 * s + t]
                    dy_t = dys[8 * s + t]
                    gb_t = gb_sum[8 * s + t]
                    x_t = xs[8 * s + t].to(tl.float32)
                    dxs = dxs + (gb_t * delta_t * LN2 + skip[s] * dy_t,)
                    skip_s += dy_t * x_t
                    dz = gb_t * x_t + ga_sum[8 * s + t]
                    if SOFTPLUS:
                        dz = dz * ex2(z2[8 * s + t] - delta_t, FAST)
                    dz = tl.where(tile * 8 + t < visits, dz, 0.0)
                    bias_s += dz
                    dzs = dzs + (dz,)
                new_bias = new_bias + (bias_s,)
                new_skip = new_skip + (skip_s,)
            sum_bias = new_bias
            sum_skip = new_skip
            store_tile(dx_ptr, dx_off, at * dx_sl, dxs, ok_t, d_ok)
            store_tile(dz_ptr, dz_off, at * dz_sl, dzs, ok_t, d_ok)
            at = at_next
            ok_t = ok_next

    if NB == N:
        store_states(rows_at(carry_base, d), C, carries, d_ok)
        store_states(rows_at(da_base, d), C, d_as, d_ok)
    out = dvec_ptr + ((b * segments + segment) * 2 * G + g) * C
    store_states(rows_at(out, d), C, sum_bias, d_ok)
    store_states(rows_at(out + G * C, d), C, sum_skip, d_ok)
