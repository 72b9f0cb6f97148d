"""Forward kernel of the SS2D scan with one state per channel (N = 1)."""

import triton
import triton.language as tl

from ._delta import load_weights, tile_delta, tile_factors
from ._primitives import LN2, LOG2E, TABLE, ex2, pack16, softplus2, spread16, unpack16
from ._walk import direction, tile_positions


@triton.jit(do_not_specialize=["batch", "segments", "span", "images", "L", "L_visits", "height", "width", "reciprocal"])
def ss2d_fwd_kernel_n1(
    x_ptr,  # [B, L, D], strides (x_sb, X_ROW, 1)
    proj_ptr,  # [B, L, K, R + 1 (+ 1)], contiguous
    dt_weight_ptr,  # [K, D, R]
    dt_bias_ptr,  # [K, D]
    a_log_ptr,  # [K, D]
    d_skip_ptr,  # [K, D]
    y_ptr,  # [B, K, L, D], contiguous
    states_ptr,  # [B, K, tiles, D], type of y: state before each tile of 16 visits
    entry_ptr,  # [B, K, segments, D] fp32: state that enters each segment, read where there are several
    index_ptr,  # [K, L_visits], only for ORDER == TABLE
    x_sb,
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
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    SUB: tl.constexpr,  # blocks of 32 channels per program
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    SAVE: tl.constexpr,
    EVEN: tl.constexpr,  # L_visits is a multiple of 16
    STAGES: tl.constexpr,  # depth of the software pipeline over tiles
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):
    BLOCKS: tl.constexpr = (D + 32 * SUB - 1) // (32 * SUB)
    FULL: tl.constexpr = EVEN and ORDER != TABLE  # no padding slots and no incomplete tile
    WHOLE: tl.constexpr = D % (32 * SUB) == 0
    P: tl.constexpr = R + 1 + HAS_C

    pid = tl.program_id(0)
    k = pid % K
    block = pid // K % BLOCKS
    group = pid // (K * BLOCKS)

    step, mirror = direction(k, K, L, width, ORDER)
    d0 = block * (32 * SUB) + tl.arange(0, 32)
    tiles = tl.cdiv(L_visits, 16)
    proj_k = proj_ptr + k * P
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + k * L_visits

    a_nat = ()
    skip = ()
    weights = ()
    bias = ()
    weight = dt_weight_ptr + k * D * R
    for s in tl.static_range(SUB):
        d = d0 + 32 * s
        ok = d < D
        a_nat = a_nat + (-ex2(tl.load(a_log_ptr + k * D + d, mask=ok, other=0.0) * LOG2E, FAST),)
        if HAS_SKIP:
            skip = skip + (tl.load(d_skip_ptr + k * D + d, mask=ok, other=0.0),)
        weights = weights + (load_weights(weight, d, ok, R, proj_ptr.dtype.element_ty),)
        if HAS_BIAS:
            bs = tl.load(dt_bias_ptr + k * D + d, mask=ok, other=0.0) * LOG2E
        else:
            bs = tl.zeros([32], tl.float32)
        bias = bias + (bs,)

    tile_t = tl.arange(0, 16)
    segment = group % segments
    b = (group // segments * images).to(tl.int64)
    tile = segment * span
    count = tl.minimum(span, tiles - tile) * images
    entry = ()
    for s in tl.static_range(SUB):
        d = d0 + 32 * s
        entry_at = entry_ptr + ((b * K + k) * segments + segment) * D + d
        entry = entry + (tl.load(entry_at, mask=(d < D) & (segments > 1), other=0.0),)
    h = entry
    p, ok_t = tile_positions(tile * 16 + tile_t, walk, L_visits, step, mirror, L, height, reciprocal, ORDER)
    PADDED: tl.constexpr = ORDER == TABLE
    factors, bc = tile_factors(proj_k + b * L * (K * P), p, ok_t, R, K * P, HAS_C, PADDED)
    z2 = tile_delta(factors, weights, bias, SUB, FAST)
    for _ in tl.range(0, count, num_stages=STAGES):
        at = p[:, None].to(tl.int64)
        x_tiles = ()
        for s in tl.static_range(SUB):
            d = d0 + 32 * s
            x_at = x_ptr + b * x_sb + at * X_ROW + d[None, :]
            if FULL and WHOLE:
                x_tile = tl.load(x_at)
            else:
                x_tile = tl.load(x_at, mask=ok_t[:, None] & (d < D)[None, :], other=0.0)
            x_tiles = x_tiles + (unpack16(x_tile),)
        b_t, c_t = tl.split(bc.to(tl.float32))
        b_s = spread16(b_t * LN2, 32)
        c_s = spread16(c_t, 32)

        # the next tile's delta, so that its latency hides behind this tile's recurrence
        last = tile == tiles - 1
        tile_next = tl.where(last, 0, tile + 1)
        b_next = tl.minimum(b + tl.where(last, 1, 0), batch - 1)
        p_next, ok_next = tile_positions(
            tile_next * 16 + tile_t, walk, L_visits, step, mirror, L, height, reciprocal, ORDER
        )
        factors, bc_next = tile_factors(proj_k + b_next * L * (K * P), p_next, ok_next, R, K * P, HAS_C, PADDED)
        z2_next = tile_delta(factors, weights, bias, SUB, FAST)

        new_h = ()
        for s in tl.static_range(SUB):
            d = d0 + 32 * s
            hs = tl.where(tile == 0, 0.0, h[s])
            if SAVE:
                state_at = states_ptr + ((b * K + k) * tiles + tile) * D + d
                saved = hs.to(states_ptr.dtype.element_ty)
                if WHOLE:
                    tl.store(state_at, saved)
                else:
                    tl.store(state_at, saved, mask=d < D)
            ys = ()
            for t in tl.static_range(16):
                x = x_tiles[s][t].to(tl.float32)
                delta2 = softplus2(z2[s][t], FAST, PRECISE)
                hs = ex2(a_nat[s] * delta2, FAST) * hs + b_s[t] * (delta2 * x)
                if HAS_C:
                    y = c_s[t] * hs
                else:
                    y = hs
                if HAS_SKIP:
                    y = y + skip[s] * x
                ys = ys + (y.to(y_ptr.dtype.element_ty),)
            new_h = new_h + (hs,)
            y_at = y_ptr + (b * K + k) * L * D + at * D + d[None, :]
            if FULL and WHOLE:
                tl.store(y_at, tl.trans(pack16(ys)))
            else:
                tl.store(y_at, tl.trans(pack16(ys)), mask=ok_t[:, None] & (d < D)[None, :])
        h = new_h
        z2 = z2_next
        bc = bc_next
        p = p_next
        ok_t = ok_next
        b = b_next
        tile = tile_next
