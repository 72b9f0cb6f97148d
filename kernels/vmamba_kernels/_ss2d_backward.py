"""Backward kernel of the SS2D scan with one state per channel (N = 1)."""

import triton
import triton.language as tl

from ._delta import load_weights, tile_delta, tile_factors
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
    spread16,
    tf32,
    unpack16,
)
from ._walk import direction, tile_positions


@triton.jit(do_not_specialize=["batch", "segments", "span", "images", "L", "L_visits", "height", "width", "reciprocal"])
def ss2d_bwd_kernel_n1(
    dy_ptr,  # [B, L, D] or [B, K, L, D], strides (dy_sb, dy_sk, DY_ROW, 1)
    x_ptr,  # [B, L, D], strides (x_sb, X_ROW, 1)
    proj_ptr,  # [B, L, K, P], contiguous
    dt_weight_ptr,  # [K, D, R]
    dt_bias_ptr,  # [K, D]
    a_log_ptr,  # [K, D]
    d_skip_ptr,  # [K, D]
    states_ptr,  # [B, K, tiles, D], type of dx: state before each tile of 16 visits
    dx_ptr,  # [B, K, L, D]
    dbc_ptr,  # [blocks, K, B, L, P - R] fp32: B and C
    dz_ptr,  # [K, B, L, D]: gradient to delta's pre-activation
    dvec_ptr,  # [programs over B, 3, K, D] fp32: dt_bias, A_log, D_skip
    entry_ptr,  # [B, K, segments, D] fp32: adjoint that enters each segment from behind, read where there are several
    index_ptr,  # [K, L_visits], only for ORDER == TABLE
    x_sb,
    dy_sb,
    dy_sk,
    batch,
    segments,  # that an image is cut into, see _segments; a program walks one
    span,  # tiles per segment
    images,  # or, uncut, so many images one after the other; divides the batch
    L,
    L_visits,
    height,
    width,
    reciprocal,  # ceil(2**32 / height), as a uint32 in an int64
    X_ROW: tl.constexpr,
    DY_ROW: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    EVEN: tl.constexpr,  # L_visits is a multiple of 16
    STAGES: tl.constexpr,  # depth of the software pipeline over tiles
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):
    BLOCKS: tl.constexpr = (D + 31) // 32
    FULL: tl.constexpr = EVEN and ORDER != TABLE  # no padding slots and no incomplete tile
    WHOLE: tl.constexpr = D % 32 == 0
    P: tl.constexpr = R + 1 + HAS_C
    PADDED: tl.constexpr = ORDER == TABLE
    TENSOR_SUMS: tl.constexpr = FAST and not PRECISE
    ROUND: tl.constexpr = (
        TENSOR_SUMS and x_ptr.dtype.element_ty == tl.float16
    )  # cutting off would show in the gradients

    pid = tl.program_id(0)
    k = pid % K
    block = pid // K % BLOCKS
    group = pid // (K * BLOCKS)

    step, mirror = direction(k, K, L, width, ORDER)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < D
    tiles = tl.cdiv(L_visits, 16)
    proj_k = proj_ptr + k * P
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + k * L_visits

    a_nat = -ex2(tl.load(a_log_ptr + k * D + d, mask=d_ok, other=0.0) * LOG2E, FAST)
    if HAS_SKIP:
        skip = tl.load(d_skip_ptr + k * D + d, mask=d_ok, other=0.0)
    if HAS_BIAS:
        bias = tl.load(dt_bias_ptr + k * D + d, mask=d_ok, other=0.0) * LOG2E
    else:
        bias = tl.zeros([32], tl.float32)
    weight = dt_weight_ptr + k * D * R
    weights = load_weights(weight, d, d_ok, R, proj_ptr.dtype.element_ty)
    select = row_selectors()

    zero = tl.zeros([32], tl.float32)
    d_bias = zero
    d_a = zero
    d_s = zero

    tile_t = tl.arange(0, 16)
    two = tl.arange(0, 2)
    segment = group % segments
    b = (group // segments * images).to(tl.int64)
    count = tl.minimum(span, tiles - segment * span)
    tile = segment * span + count - 1
    count = count * images
    entry_at = entry_ptr + ((b * K + k) * segments + segment) * D + d
    carry = tl.load(entry_at, mask=d_ok & (segments > 1), other=0.0)  # a_{t+1} g_{t+1}
    p, ok_t = tile_positions(tile * 16 + tile_t, walk, L_visits, step, mirror, L, height, reciprocal, ORDER)
    factors, bc = tile_factors(proj_k + b * L * (K * P), p, ok_t, R, K * P, HAS_C, PADDED)
    z2 = tile_delta(factors, (weights,), (bias,), 1, FAST)
    for _ in tl.range(0, count, num_stages=STAGES):
        at = p[:, None].to(tl.int64)
        x_at = x_ptr + b * x_sb + at * X_ROW + d[None, :]
        dy_at = dy_ptr + b * dy_sb + k.to(tl.int64) * dy_sk + at * DY_ROW + d[None, :]
        state_at = states_ptr + ((b * K + k) * tiles + tile) * D + d
        if FULL and WHOLE:
            xs = unpack16(tl.load(x_at))
            dys = unpack16(tl.load(dy_at))
            h = tl.load(state_at).to(tl.float32)
        else:
            ok = ok_t[:, None] & d_ok[None, :]
            xs = unpack16(tl.load(x_at, mask=ok, other=0.0))
            dys = unpack16(tl.load(dy_at, mask=ok, other=0.0))
            h = tl.load(state_at, mask=d_ok, other=0.0).to(tl.float32)
        b_t, c_t = tl.split(bc.to(tl.float32))
        b_s = spread16(b_t * LN2, 32)
        c_s = spread16(c_t, 32)
        carry = tl.where(tile == tiles - 1, 0.0, carry)

        # the next tile's factors, B and C are loaded ahead
        b_next = tl.minimum(b + tl.where(tile == 0, 1, 0), batch - 1)
        tile_next = tl.where(tile == 0, tiles, tile) - 1
        p_next, ok_next = tile_positions(
            tile_next * 16 + tile_t, walk, L_visits, step, mirror, L, height, reciprocal, ORDER
        )
        factors, bc_next = tile_factors(proj_k + b_next * L * (K * P), p_next, ok_next, R, K * P, HAS_C, PADDED)

        # forward through the tile again
        delta2 = ()
        states = (h,)
        for t in tl.static_range(16):
            dl = softplus2(z2[0][t], FAST, PRECISE)
            h = ex2(a_nat * dl, FAST) * h + b_s[t] * (dl * xs[t].to(tl.float32))
            delta2 = delta2 + (dl,)
            states = states + (h,)

        # and back
        dx_r = ()  # last visit first
        dz_r = ()
        gv_r = ()
        dyh_r = ()
        sum_gv = (zero, zero, zero, zero)
        sum_dyh = (zero, zero, zero, zero)
        for t in tl.static_range(15, -1, -1):
            x = xs[t].to(tl.float32)
            dy = dys[t].to(tl.float32)
            dl = delta2[t]
            decay = ex2(a_nat * dl, FAST)
            kept = decay * states[t]
            v = dl * x
            if HAS_C:
                g = c_s[t] * dy + carry
                dyh_r = dyh_r + (tf32(dy * states[t + 1], ROUND),)
            else:
                g = dy + carry
            gv_r = gv_r + (tf32(g * v, ROUND),)
            gb = g * b_s[t]
            g_kept = g * kept
            dx = gb * dl
            if HAS_SKIP:
                dx = dx + skip * dy
                d_s += dy * x
            # gradient to the pre-activation, times ln 2
            dz = ex2(z2[0][t] - dl, FAST) * (gb * x + (a_nat * LN2) * g_kept)
            dx_r = dx_r + (dx.to(dx_ptr.dtype.element_ty),)
            dz_r = dz_r + ((dz * LOG2E).to(dz_ptr.dtype.element_ty),)
            carry = decay * g
            d_bias += dz
            d_a += g_kept * dl
            if TENSOR_SUMS and t % 2 == 0:
                sum_gv = lane_sums_step(sum_gv, select, gv_r[15 - t], gv_r[14 - t], t // 2)
                if HAS_C:
                    sum_dyh = lane_sums_step(sum_dyh, select, dyh_r[15 - t], dyh_r[14 - t], t // 2)

        dx_tile = tl.trans(pack16(reverse(dx_r)))
        dx_at = dx_ptr + (b * K + k) * L * D + at * D + d[None, :]
        dz_tile = tl.trans(pack16(reverse(dz_r)))
        dz_at = dz_ptr + (k * batch + b) * L * D + at * D + d[None, :]
        if TENSOR_SUMS:
            db = lane_sums(sum_gv)
        else:
            db = tl.sum(pack16(reverse(gv_r)), 0)
        dc = db
        if HAS_C:
            if TENSOR_SUMS:
                dc = lane_sums(sum_dyh)
            else:
                dc = tl.sum(pack16(reverse(dyh_r)), 0)
        dbc = tl.join(db * LN2, dc)
        dbc_at = dbc_ptr + (((block * K + k).to(tl.int64) * batch + b) * L + p)[:, None] * (P - R) + two[None, :]
        if FULL:
            tl.store(dbc_at, dbc, mask=(two < P - R)[None, :])
        else:
            tl.store(dbc_at, dbc, mask=ok_t[:, None] & (two < P - R)[None, :])
        if FULL and WHOLE:
            tl.store(dx_at, dx_tile)
            tl.store(dz_at, dz_tile)
        else:
            tl.store(dx_at, dx_tile, mask=ok_t[:, None] & d_ok[None, :])
            tl.store(dz_at, dz_tile, mask=ok_t[:, None] & d_ok[None, :])

        tile = tile_next
        b = b_next
        p = p_next
        ok_t = ok_next
        bc = bc_next
        z2 = tile_delta(factors, (weights,), (bias,), 1, FAST)

    out = dvec_ptr + (group.to(tl.int64) * 3 * K + k) * D + d
    # dz was accumulated times ln 2
    tl.store(out, d_bias * LOG2E, mask=d_ok)
    tl.store(out + K * D, d_a * (a_nat * LN2), mask=d_ok)
    tl.store(out + 2 * K * D, d_s, mask=d_ok)
