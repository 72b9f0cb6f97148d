"""Backward kernel of a selective scan with any number of states, over any strides; see ``_scan_forward``."""

import triton
import triton.language as tl

from ._memory import load_states, load_uniform, store_states, touch, touch_at, unpack_uniform
from ._own_memory import ROW, all_lanes, load_bc, load_kept, own_memory, send_bc, store_kept, widen_bc
from ._primitives import LN2, TABLE, ex2, pack8, pair_place, pair_sums, reverse, row_selectors, tf32
from ._scan_forward import (
    SEQUENCE,
    inputs,
    load_channels,
    load_delta_weights,
    load_rows,
    place,
    read_tile,
    scan_delta,
    step_sizes,
    store_tile,
    tile_rows,
    touch_rows,
    vectors,
)
from ._walk import direction


@triton.jit
def halves(loaded):
    """B and C of one state from both of their ``load_uniform``."""
    COUNT: tl.constexpr = len(loaded) // 2
    b = ()
    c = ()
    for i in tl.static_range(COUNT):
        b = b + (loaded[i],)
        c = c + (loaded[COUNT + i],)
    return unpack_uniform(b), unpack_uniform(c)


@triton.jit
def add(rows, others):
    """Sums of two tuples of equal length, entry by entry."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i] + others[i],)
    return out


@triton.jit
def recompute(h, a_n, b_n, delta2, v, FAST: tl.constexpr):
    """Through a tile: the decays, and the states before and after every visit."""
    decay = ()
    states = (h,)
    for t in tl.static_range(8):
        a = ex2(a_n * delta2[t], FAST)
        h = tl.fma(a, h, b_n[t] * v[t])
        decay = decay + (a,)
        states = states + (h,)
    return decay, states


@triton.jit
def store_sums(dbc_at, gv_r, dyh_r, select, TENSOR_SUMS: tl.constexpr):
    """The tile's gradients to one state's B and C, [2, 8] fp32, from vectors over channels (last visit first)."""
    if TENSOR_SUMS:
        place_in_tile, first = pair_place()
        tl.store(dbc_at + place_in_tile, pair_sums(select, gv_r, dyh_r), mask=first)
    else:
        eight = tl.arange(0, 8)
        tl.store(dbc_at + eight, tl.sum(pack8(reverse(gv_r)), 0))
        tl.store(dbc_at + 8 + eight, tl.sum(pack8(reverse(dyh_r)), 0))


@triton.jit(do_not_specialize=[*SEQUENCE, "B", "enters"])
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
    states_ptr,  # [B, G, groups of tiles, N, C] fp32 or bf16: state before each group, of the first not read
    first_ptr,  # [B, G, N, C] fp32: state before the first group; zero without HAS_FIRST
    scratch_ptr,  # [B, G, segments, EVERY, N, C] fp32: states before the tiles of the group at hand; not with OWN
    carry_ptr,  # [B, G, segments, N, C] fp32: a_{t+1} g_{t+1}; with ``enters`` it holds that from behind
    da_ptr,  # [B, G, segments, N, C] fp32
    dvec_ptr,  # [B, segments, 2, G, C] fp32: delta bias, D
    dx_ptr,  # [B, L, G, C] by strides
    dz_ptr,  # [B, L, G, C] by strides: gradient to delta's pre-activation
    dbc_ptr,  # [blocks, B, G, tiles, N, 2, 8] fp32: B and C
    index_ptr,
    own_ptr,  # in the interpreter, for ``own_memory``
    dy_sb, dy_sl, dy_sg, dy_sc,
    x_sb, x_sl, x_sg, x_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    dx_sb, dx_sl, dx_sg, dx_sc,
    dz_sb, dz_sl, dz_sg, dz_sc,
    L, visits, height, width, reciprocal, tiles, segments, span, G,
    B, enters,
    N: tl.constexpr,
    NB: tl.constexpr,  # states at a time
    FIRST: tl.constexpr,  # states at a time where states are recomputed; with OWN all
    EVERY: tl.constexpr,  # tiles in a group
    OWN: tl.constexpr,  # what comes back tile after tile rests in the program's own memory
    C: tl.constexpr,
    K: tl.constexpr,  # directions; groups are directions if K > 1
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    TENSOR_SUMS: tl.constexpr = FAST and not PRECISE
    ROUND: tl.constexpr = TENSOR_SUMS and x_ptr.dtype.element_ty == tl.float16
    b, segment, g, block, d, d_ok = place(tl.program_id(0), segments, G, C)
    step, mirror = direction(g, K, L, width, ORDER)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g * visits
    bias = load_channels(bias_ptr, g * C + d, d_ok, HAS_BIAS)
    skip = load_channels(skip_ptr, g * C + d, d_ok, HAS_SKIP)
    factors_type: tl.constexpr = factors_ptr.dtype.element_ty if R > 0 else tl.float32
    weights = load_delta_weights(weight_ptr, g * C * R, d, d_ok, R, factors_type)
    select = row_selectors()
    d64 = d[None, :].to(tl.int64)
    dy_off = b * dy_sb + g * dy_sg + d64 * dy_sc
    x_off = b * x_sb + g * x_sg + d64 * x_sc
    dx_off = b * dx_sb + g * dx_sg + d64 * dx_sc
    dz_off = b * dz_sb + g * dz_sg + d64 * dz_sc
    d_off = tl.zeros([1, 32], tl.int64)
    if R == 0:
        d_off = b * d_sb + g * d_sg + d64 * d_sc
    f_off = b * f_sb + g * f_sg
    x_first = b * x_sb + g * x_sg + tl.min(d) * x_sc
    dy_first = b * dy_sb + g * dy_sg + tl.min(d) * dy_sc
    d_first = b * d_sb + g * d_sg + tl.min(d) * d_sc
    bg = b * G + g
    row = bg * segments + segment
    a_base = a_ptr + g * N * C + d
    bc_base = bc_ptr + bg * tiles * N * 16
    dbc_base = dbc_ptr + ((tl.cast(block, tl.int64) * B + b) * G + g) * tiles * N * 16
    states_base = states_ptr + bg * tl.cdiv(tiles, EVERY) * N * C + d
    first_base = first_ptr
    if HAS_FIRST:
        first_base = first_ptr + bg * N * C + d
    carry_base = carry_ptr + row * N * C + d
    da_base = da_ptr + row * N * C + d
    # where A, carries and sums of dA are kept, and the states before the tiles of the group at hand
    bc_type: tl.constexpr = bc_ptr.dtype.element_ty
    TILE: tl.constexpr = N * (ROW if OWN else C)
    if OWN:
        own_bc = own_memory(N * (64 + 2 * bc_type.primitive_bitwidth) + (3 + EVERY) * TILE, own_ptr, FAST)
        sent_bc = own_bc + N * 64
        own = sent_bc + N * 2 * bc_type.primitive_bitwidth
        a_at = own + tl.arange(0, 32) * 4
        carry_at = a_at + N * ROW
        da_at = carry_at + N * ROW
        scratch = da_at + N * ROW
        store_kept(a_at, 0, C, load_states(a_base, C, N, d_ok, FAST), d_ok, FAST, OWN)
    else:
        a_at = a_base
        carry_at = carry_base
        da_at = da_base
        scratch = scratch_ptr + row * EVERY * N * C + d
        own_bc = 0
        sent_bc = 0

    zero = tl.zeros([32], tl.float32)
    sum_bias = zero
    sum_skip = zero
    for n in range(0, N):
        carry = load_states(carry_base + n * C, C, 1, d_ok & (enters != 0), FAST)
        store_kept(carry_at, n, C, carry, d_ok, FAST, OWN)
        store_kept(da_at, n, C, (zero,), d_ok, FAST, OWN)
    all_lanes(FAST, OWN)
    begin = segment * span
    end = tl.minimum(begin + span, tiles)
    groups = tl.cdiv(end - begin, EVERY)  # a segment is a whole number of groups, but for the last
    first = begin + (groups - 1) * EVERY
    at, ok_t, x, delta = read_tile(
        first, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits, step, mirror,
        L, height, reciprocal, R, ORDER,
    )  # fmt: skip
    send_bc(sent_bc, bc_base + tl.cast(first, tl.int64) * N * 16, N, FAST, OWN)
    for _ in range(0, groups):
        count = tl.minimum(EVERY, end - first)
        saved = states_base + tl.cast(first // EVERY, tl.int64) * N * C
        last_at, last_ok = tile_rows(first + count - 1, walk, visits, step, mirror, L, height, reciprocal, ORDER)
        ok = last_ok[:, None] & d_ok[None, :]
        dy = tl.load(dy_ptr + dy_off + last_at[:, None] * dy_sl, mask=ok, other=0.0)

        # states before the group's tiles; this pass has registers for many of them
        for n in range(0, N, FIRST):
            a = load_kept(a_at, n, C, FIRST, d_ok, FAST, OWN)
            h = load_states(saved + n * C, C, FIRST, d_ok & (first > 0), FAST)
            if HAS_FIRST:
                h = add(h, load_states(first_base + n * C, C, FIRST, d_ok & (first == 0), FAST))
            store_kept(scratch, n, C, h, d_ok, FAST, OWN)
            if n > 0:
                at, ok_t, x, delta = read_tile(
                    first, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits,
                    step, mirror, L, height, reciprocal, R, ORDER,
                )  # fmt: skip
            for i in range(0, count - 1):
                tile = first + i
                bc = bc_base + tl.cast(tile, tl.int64) * N * 16
                widen_bc(own_bc, sent_bc, N, bc_type, FAST, OWN)
                send_bc(sent_bc, bc + N * 16, N, FAST, OWN)
                xs = vectors(x)
                z2 = scan_delta(delta, weights, bias, R, FAST)
                at, ok_t, x, delta = read_tile(
                    tile + 1, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits,
                    step, mirror, L, height, reciprocal, R, ORDER,
                )  # fmt: skip
                delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
                v = inputs(delta2, xs)
                new_h = ()
                for m in tl.static_range(FIRST):
                    b_n = load_bc(own_bc, bc, n + m, 0, tl.float32, FAST, OWN)
                    h_n = h[m]
                    for t in tl.static_range(8):
                        h_n = tl.fma(ex2(a[m] * delta2[t], FAST), h_n, b_n[t] * v[t])
                    new_h = new_h + (h_n,)
                h = new_h
                store_kept(scratch + (i + 1) * TILE, n, C, h, d_ok, FAST, OWN)

        touch(saved - N * C, N * C, C, FAST)  # the next group's
        for j in range(0, count):
            i = count - 1 - j
            tile = first + i
            bc = bc_base + tl.cast(tile, tl.int64) * N * 16
            dbc = dbc_base + tl.cast(tile, tl.int64) * N * 16
            following = tl.maximum(tl.where(i > 0, tile - 1, first - EVERY), 0)
            widen_bc(own_bc, sent_bc, N, bc_type, FAST, OWN)
            send_bc(sent_bc, bc_base + tl.cast(following, tl.int64) * N * 16, N, FAST, OWN)
            ok = ok_t[:, None] & d_ok[None, :]
            at_next, ok_next = tile_rows(following, walk, visits, step, mirror, L, height, reciprocal, ORDER)
            touch_rows(at_next, x_ptr, x_first, x_sl, delta_ptr, d_first, d_sl, factors_ptr, f_off, f_sl, R, FAST)
            touch_at(dy_ptr + dy_first + at_next * dy_sl, FAST)
            xs = vectors(x)
            dys_given = vectors(dy)
            z2 = scan_delta(delta, weights, bias, R, FAST)
            delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
            v = inputs(delta2, xs)
            dys = ()
            gb_sum = ()
            ga_sum = ()
            for t in tl.static_range(8):
                dys = dys + (dys_given[t].to(tl.float32),)
                gb_sum = gb_sum + (zero,)
                ga_sum = ga_sum + (zero,)
            before = scratch + i * TILE
            if not OWN:
                first_bc = load_uniform(bc, FAST) + load_uniform(bc + 8, FAST)
                a = load_states(a_at, C, NB, d_ok, FAST)
                h = load_states(before, C, NB, d_ok, FAST)
                carries = load_states(carry_at, C, NB, d_ok, FAST)
            for n in range(0, N, NB):
                d_as = load_kept(da_at, n, C, NB, d_ok, FAST, OWN)
                if OWN:
                    a = load_kept(a_at, n, C, NB, d_ok, FAST, OWN)
                    h = load_kept(before, n, C, NB, d_ok, FAST, OWN)
                    carries = load_kept(carry_at, n, C, NB, d_ok, FAST, OWN)
                else:  # a step ahead; they return in the order in which they are asked for, so the farthest goes last
                    ahead = tl.minimum(n + NB, N - NB)
                    bc_next = load_uniform(bc + ahead * 16, FAST) + load_uniform(bc + ahead * 16 + 8, FAST)
                    a_next = load_states(a_at + ahead * C, C, NB, d_ok, FAST)
                    carries_next = load_states(carry_at + ahead * C, C, NB, d_ok, FAST)
                    h_next = load_states(before + ahead * C, C, NB, d_ok, FAST)
                new_carries = ()
                new_d_as = ()
                for m in tl.static_range(NB):
                    if OWN or m > 0:
                        b_n = load_bc(own_bc, bc, n + m, 0, tl.float32, FAST, OWN)
                        c_n = load_bc(own_bc, bc, n + m, 1, tl.float32, FAST, OWN)
                    else:
                        b_n, c_n = halves(first_bc)
                    decay, states = recompute(h[m], a[m], b_n, delta2, v, FAST)
                    carry = carries[m]
                    sum_a = zero
                    new_gb = ()
                    new_ga = ()
                    gv_r = ()
                    dyh_r = ()
                    for t in tl.static_range(7, -1, -1):
                        g_h = c_n[t] * dys[t] + carry
                        carry = decay[t] * g_h
                        g_kept = carry * states[t]
                        sum_a += g_kept * delta2[t]
                        new_gb = new_gb + (gb_sum[t] + g_h * b_n[t],)
                        new_ga = new_ga + (ga_sum[t] + a[m] * g_kept,)
                        gv_r = gv_r + (tf32(g_h * v[t], ROUND),)
                        dyh_r = dyh_r + (tf32(dys[t] * states[t + 1], ROUND),)
                    gb_sum = reverse(new_gb)
                    ga_sum = reverse(new_ga)
                    store_sums(dbc + (n + m) * 16, gv_r, dyh_r, select, TENSOR_SUMS)
                    new_carries = new_carries + (carry,)
                    new_d_as = new_d_as + (d_as[m] + sum_a,)
                store_kept(carry_at, n, C, new_carries, d_ok, FAST, OWN)
                store_kept(da_at, n, C, new_d_as, d_ok, FAST, OWN)
                if not OWN:
                    first_bc = bc_next
                    a = a_next
                    carries = carries_next
                    h = h_next

            # read ahead only once the states are done, which need those registers more
            x, delta = load_rows(
                at_next, ok_next, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, R
            )  # fmt: skip
            ok_dy = ok_next[:, None] & d_ok[None, :]
            dy = tl.load(dy_ptr + dy_off + at_next[:, None] * dy_sl, mask=ok_dy, other=0.0)
            dxs = ()
            dzs = ()
            for t in tl.static_range(8):
                x_t = xs[t].to(tl.float32)
                dxs = dxs + (gb_sum[t] * delta2[t] * LN2 + skip * dys[t],)
                sum_skip += dys[t] * x_t
                dz = gb_sum[t] * x_t + ga_sum[t]
                if SOFTPLUS:
                    dz = dz * ex2(z2[t] - delta2[t], FAST)
                dz = tl.where(tile * 8 + t < visits, dz, 0.0)
                sum_bias += dz
                dzs = dzs + (dz,)
            store_tile(dx_ptr, dx_off + at[:, None] * dx_sl, dxs, ok)
            store_tile(dz_ptr, dz_off + at[:, None] * dz_sl, dzs, ok)
            at = at_next
            ok_t = ok_next
        first -= EVERY

    if OWN:
        all_lanes(FAST, OWN)
        for n in range(0, N):
            store_states(carry_base + n * C, C, load_kept(carry_at, n, C, 1, d_ok, FAST, OWN), d_ok, FAST)
            store_states(da_base + n * C, C, load_kept(da_at, n, C, 1, d_ok, FAST, OWN), d_ok, FAST)
    out = dvec_ptr + ((b * segments + segment) * 2 * G + g) * C + d
    tl.store(out, sum_bias, mask=d_ok)
    tl.store(out + G * C, sum_skip, mask=d_ok)
