"""Forward kernel of the SS2D scan with one state per channel (N = 1)."""

import triton
import triton.language as tl

from ._delta import load_weight, project
from ._primitives import LN2, LOG2E, TABLE, ex2, join_lanes, softplus2, split_lanes, unpack16
from ._walk import direction, walk_at, walk_next


@triton.jit
def ss2d_fwd_kernel_n1(
    x_ptr,  # [B, L, D], strides (x_sb, X_ROW, 1)
    proj_ptr,  # [B, L, K, R + 1 (+ 1)], contiguous
    dt_weight_ptr,  # [K, D, R]
    dt_bias_ptr,  # [K, D]
    a_log_ptr,  # [K, D]
    d_skip_ptr,  # [K, D]
    y_ptr,  # [B, K, L, D], contiguous
    states_ptr,  # [B, K, tiles, D]: state before each tile of 16 visits
    index_ptr,  # [K, L_visits], only for ORDER == TABLE
    x_sb,
    L,
    L_visits,
    height,
    width,
    X_ROW: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    KR: tl.constexpr,  # R rounded up to a power of two, at least 16
    V: tl.constexpr,  # channels per lane
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    SAVE: tl.constexpr,
    EVEN: tl.constexpr,  # L_visits is a multiple of 16
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):
    BD: tl.constexpr = 32 * V
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    WHOLE: tl.constexpr = D % BD == 0
    P: tl.constexpr = R + 1 + HAS_C

    pid = tl.program_id(0)
    k = pid % K
    block = pid // K % BLOCKS
    b = (pid // (K * BLOCKS)).to(tl.int64)

    step, mirror = direction(k, K, L, width, ORDER)
    sign = 1 - 2 * mirror
    d = block * BD + tl.arange(0, BD)
    d_ok = d < D
    lane_d = block * BD + tl.arange(0, 32) * V  # first channel of a lane

    off = mirror * (L - 1)  # natural position of walk position q is off + sign * q
    x_base = x_ptr + b * x_sb + d
    y_base = y_ptr + (b * K + k) * L * D + d
    proj_base = proj_ptr + b * L * (K * P) + k * P

    a_nat = ()
    skip = ()
    w_hi = ()
    w_lo = ()
    bias = ()
    r = tl.arange(0, KR)
    for s in tl.static_range(V):
        ds = lane_d + s
        ok = ds < D
        a_nat = a_nat + (-ex2(tl.load(a_log_ptr + k * D + ds, mask=ok, other=0.0) * LOG2E, FAST),)
        if HAS_SKIP:
            skip = skip + (tl.load(d_skip_ptr + k * D + ds, mask=ok, other=0.0),)
        hi, lo = load_weight(
            dt_weight_ptr + k * D * R, ds[None, :], r[:, None], ok[None, :], R, proj_ptr.dtype.element_ty
        )
        w_hi = w_hi + (hi,)
        w_lo = w_lo + (lo,)
        if HAS_BIAS:
            bs = tl.load(dt_bias_ptr + k * D + ds, mask=ok, other=0.0) * LOG2E
        else:
            bs = tl.zeros([32], tl.float32)
        bias = bias + (bs,)

    h = ()
    for _ in tl.static_range(V):
        h = h + (tl.zeros([32], tl.float32),)
    tile_t = tl.arange(0, 16)
    tiles = tl.cdiv(L_visits, 16)
    state_at = states_ptr + (b * K + k) * tiles * D + d

    for tile in range(0, tiles):
        j0 = tile * 16
        if SAVE:
            tl.store(state_at, join_lanes(h, V), mask=d_ok)
            state_at += D

        if ORDER == TABLE:
            q_tile = tl.load(index_ptr + k * L_visits + j0 + tile_t, mask=j0 + tile_t < L_visits, other=-1)
            row_ok = q_tile >= 0
            q_tile = tl.maximum(q_tile, 0)
        else:
            q_tile = walk_at(j0 + tile_t, step, L, height, ORDER)
            row_ok = tile_t >= 0
        p_tile = (off + sign * q_tile).to(tl.int64)
        factors = tl.load(
            proj_base + (p_tile * (K * P))[:, None] + r[None, :],
            mask=row_ok[:, None] & (r < R)[None, :],
            other=0.0,
        )
        z2 = ()
        for s in tl.static_range(V):
            bias_tile = tl.zeros([16, 32], tl.float32) + bias[s][None, :]
            z2 = z2 + (unpack16(project(factors, w_hi[s], w_lo[s], bias_tile, FAST)),)

        q = walk_at(j0, step, L, height, ORDER)
        for t in tl.static_range(16):
            if ORDER == TABLE:
                q = tl.load(index_ptr + k * L_visits + j0 + t, mask=j0 + t < L_visits, other=-1)
                ok_t = q >= 0
                q = tl.maximum(q, 0)
            else:
                ok_t = j0 + t < L_visits
            p64 = (off + sign * q).to(tl.int64)
            x_at = x_base + p64 * X_ROW
            p_at = proj_base + p64 * (K * P) + R
            y_at = y_base + p64 * D
            if ORDER == TABLE:
                xt = tl.load(x_at, mask=d_ok & ok_t, other=0.0)
                b_t = tl.load(p_at, mask=ok_t, other=0.0).to(tl.float32) * LN2
                if HAS_C:
                    c_t = tl.load(p_at + 1, mask=ok_t, other=0.0).to(tl.float32)
            else:
                if WHOLE:
                    xt = tl.load(x_at)
                else:
                    xt = tl.load(x_at, mask=d_ok, other=0.0)
                b_t = tl.load(p_at).to(tl.float32) * LN2
                if HAS_C:
                    c_t = tl.load(p_at + 1).to(tl.float32)
            xs = split_lanes(xt.to(tl.float32), V)

            new_h = ()
            ys = ()
            for s in tl.static_range(V):
                delta2 = softplus2(z2[s][t], FAST, PRECISE)
                hs = ex2(a_nat[s] * delta2, FAST) * h[s] + b_t * (delta2 * xs[s])
                new_h = new_h + (hs,)
                if HAS_C:
                    ys_s = c_t * hs
                else:
                    ys_s = hs
                if HAS_SKIP:
                    ys_s = ys_s + skip[s] * xs[s]
                ys = ys + (ys_s,)
            h = new_h
            yt = join_lanes(ys, V).to(y_ptr.dtype.element_ty)
            if EVEN and ORDER != TABLE:
                if WHOLE:
                    tl.store(y_at, yt)
                else:
                    tl.store(y_at, yt, mask=d_ok)
            else:
                tl.store(y_at, yt, mask=d_ok & ok_t)
            if ORDER != TABLE:
                q = walk_next(q, step, L)
