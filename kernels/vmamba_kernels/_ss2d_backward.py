"""Backward kernel of the SS2D scan with one state per channel (N = 1)."""

import triton
import triton.language as tl

from ._delta import load_weight, project
from ._primitives import LN2, LOG2E, TABLE, ex2, join_lanes, pack16, softplus2, split_lanes, unpack16
from ._walk import direction, walk_at, walk_next


@triton.jit
def ss2d_bwd_kernel_n1(
    dy_ptr,  # [B, L, D] or [B, K, L, D], strides (dy_sb, dy_sk, DY_ROW, 1)
    x_ptr,  # [B, L, D], strides (x_sb, X_ROW, 1)
    proj_ptr,  # [B, L, K, P], contiguous
    dt_weight_ptr,  # [K, D, R]
    dt_bias_ptr,  # [K, D]
    a_log_ptr,  # [K, D]
    d_skip_ptr,  # [K, D]
    states_ptr,  # [B, K, tiles, D]: state before each tile of 16 visits
    dx_ptr,  # [B, K, L, D]
    dproj_ptr,  # [blocks, B, L, K, P] fp32
    dweight_ptr,  # [B, K, D, R] fp32
    dvec_ptr,  # [B, 3, K, D] fp32: dt_bias, A_log, D_skip
    index_ptr,  # [K, L_visits], only for ORDER == TABLE
    x_sb,
    dy_sb,
    dy_sk,
    batch,
    L,
    L_visits,
    height,
    width,
    X_ROW: tl.constexpr,
    DY_ROW: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    KR: tl.constexpr,  # R rounded up to a power of two, at least 16
    KP: tl.constexpr,  # P rounded up likewise
    V: tl.constexpr,  # channels per lane
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):
    BD: tl.constexpr = 32 * V
    BLOCKS: tl.constexpr = (D + BD - 1) // BD
    P: tl.constexpr = R + 1 + HAS_C
    DOT: tl.constexpr = "tf32x3" if PRECISE else "tf32"

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
    dy_base = dy_ptr + b * dy_sb + k.to(tl.int64) * dy_sk + d
    dx_base = dx_ptr + (b * K + k) * L * D + d
    proj_base = proj_ptr + b * L * (K * P) + k * P
    dproj_base = dproj_ptr + (block.to(tl.int64) * batch + b) * L * (K * P) + k * P

    a_nat = ()
    skip = ()
    w_hi = ()
    w_lo = ()
    w_t = ()
    bias = ()
    d_w = ()
    d_bias = ()
    d_a = ()
    d_s = ()
    carry = ()  # a_{t+1} g_{t+1}
    r = tl.arange(0, KR)
    c = tl.arange(0, KP)
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
        full, _ = load_weight(dt_weight_ptr + k * D * R, ds[:, None], c[None, :], ok[:, None], R, tl.float32)
        w_t = w_t + (full,)
        if HAS_BIAS:
            bs = tl.load(dt_bias_ptr + k * D + ds, mask=ok, other=0.0) * LOG2E
        else:
            bs = tl.zeros([32], tl.float32)
        bias = bias + (bs,)
        d_w = d_w + (tl.zeros([32, KR], tl.float32),)
        d_bias = d_bias + (tl.zeros([32], tl.float32),)
        d_a = d_a + (tl.zeros([32], tl.float32),)
        d_s = d_s + (tl.zeros([32], tl.float32),)
        carry = carry + (tl.zeros([32], tl.float32),)
    pick_b = tl.zeros([32, KP], tl.float32) + tl.where(c == R, LN2, 0.0)[None, :]
    pick_c = tl.zeros([32, KP], tl.float32) + tl.where(c == R + 1, 1.0, 0.0)[None, :]

    tile_t = tl.arange(0, 16)
    tiles = tl.cdiv(L_visits, 16)
    state_at = states_ptr + (b * K + k + 1) * tiles * D + d

    for back in range(0, tiles):
        tile = tiles - 1 - back
        j0 = tile * 16
        if ORDER == TABLE:
            q_tile = tl.load(index_ptr + k * L_visits + j0 + tile_t, mask=j0 + tile_t < L_visits, other=-1)
            row_ok = q_tile >= 0
            q_tile = tl.maximum(q_tile, 0)
        else:
            q_tile = walk_at(j0 + tile_t, step, L, height, ORDER)
            row_ok = j0 + tile_t < L_visits
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

        # forward through the tile again
        state_at -= D
        h = split_lanes(tl.load(state_at, mask=d_ok, other=0.0), V)
        q = walk_at(j0, step, L, height, ORDER)
        xs = ()
        dys = ()
        pos = ()
        oks = ()
        b_s = ()
        c_s = ()
        delta2 = ()
        sig = ()
        decay = ()
        kept = ()  # a_t h_{t-1}
        for t in tl.static_range(16):
            if ORDER == TABLE:
                q = tl.load(index_ptr + k * L_visits + j0 + t, mask=j0 + t < L_visits, other=-1)
                ok_t = q >= 0
                q = tl.maximum(q, 0)
            else:
                ok_t = j0 + t < L_visits
            p64 = (off + sign * q).to(tl.int64)
            xt = tl.load(x_base + p64 * X_ROW, mask=d_ok & ok_t, other=0.0).to(tl.float32)
            dyt = tl.load(dy_base + p64 * DY_ROW, mask=d_ok & ok_t, other=0.0).to(tl.float32)
            p_at = proj_base + p64 * (K * P) + R
            b_t = tl.load(p_at, mask=ok_t, other=0.0).to(tl.float32) * LN2
            if HAS_C:
                c_t = tl.load(p_at + 1, mask=ok_t, other=0.0).to(tl.float32)
                c_s = c_s + (c_t,)
            b_s = b_s + (b_t,)
            pos = pos + (p64,)
            oks = oks + (ok_t,)
            x_v = split_lanes(xt, V)
            xs = xs + (x_v,)
            dys = dys + (split_lanes(dyt, V),)
            new_h = ()
            delta2_v = ()
            sig_v = ()
            decay_v = ()
            kept_v = ()
            for s in tl.static_range(V):
                z = z2[s][t]
                dl = softplus2(z, FAST, PRECISE)
                a = ex2(a_nat[s] * dl, FAST)
                ah = a * h[s]
                new_h = new_h + (ah + b_t * (dl * x_v[s]),)
                delta2_v = delta2_v + (dl,)
                sig_v = sig_v + (ex2(z - dl, FAST),)
                decay_v = decay_v + (a,)
                kept_v = kept_v + (ah,)
            h = new_h
            delta2 = delta2 + (delta2_v,)
            sig = sig + (sig_v,)
            decay = decay + (decay_v,)
            kept = kept + (kept_v,)
            if ORDER != TABLE:
                q = walk_next(q, step, L)

        # and back
        acc = tl.zeros([16, KP], tl.float32)
        dz_rev = ()
        gv_rev = ()
        dyh_rev = ()
        for i in tl.static_range(16):
            dx_v = ()
            dz_v = ()
            gv_v = ()
            dyh_v = ()
            new_carry = ()
            new_bias = ()
            new_a = ()
            new_s = ()
            for s in tl.static_range(V):
                x_ = xs[15 - i][s]
                dl = delta2[15 - i][s]
                ah = kept[15 - i][s]
                dy_ = dys[15 - i][s]
                v = dl * x_
                if HAS_C:
                    g = c_s[15 - i] * dy_ + carry[s]
                    dyh_v = dyh_v + (dy_ * (ah + b_s[15 - i] * v),)
                else:
                    g = dy_ + carry[s]
                gb = g * b_s[15 - i]
                gah = g * ah
                dx_ = gb * dl
                if HAS_SKIP:
                    dx_ = dx_ + skip[s] * dy_
                    new_s = new_s + (d_s[s] + dy_ * x_,)
                else:
                    new_s = new_s + (d_s[s],)
                # gradient to delta times ln 2, then to the pre-activation
                dz = sig[15 - i][s] * (gb * x_ + (a_nat[s] * LN2) * gah)
                dx_v = dx_v + (dx_,)
                dz_v = dz_v + (dz,)
                gv_v = gv_v + (g * v,)
                new_carry = new_carry + (decay[15 - i][s] * g,)
                new_bias = new_bias + (d_bias[s] + dz,)
                new_a = new_a + (d_a[s] + gah * dl,)
            carry = new_carry
            d_bias = new_bias
            d_a = new_a
            d_s = new_s
            dz_rev = dz_rev + (dz_v,)
            gv_rev = gv_rev + (gv_v,)
            dyh_rev = dyh_rev + (dyh_v,)
            dxt = join_lanes(dx_v, V).to(dx_ptr.dtype.element_ty)
            tl.store(dx_base + pos[15 - i] * D, dxt, mask=d_ok & oks[15 - i])

        new_w = ()
        for s in tl.static_range(V):
            rows = ()
            gvs = ()
            dyhs = ()
            for t in tl.static_range(16):
                rows = rows + (dz_rev[15 - t][s],)
                gvs = gvs + (gv_rev[15 - t][s],)
                if HAS_C:
                    dyhs = dyhs + (dyh_rev[15 - t][s],)
            dz_t = pack16(rows)  # [32, 16]
            acc = tl.dot(tl.trans(dz_t), w_t[s], acc, input_precision=DOT)
            acc = tl.dot(tl.trans(pack16(gvs)), pick_b, acc, input_precision=DOT)
            if HAS_C:
                acc = tl.dot(tl.trans(pack16(dyhs)), pick_c, acc, input_precision=DOT)
            new_w = new_w + (tl.dot(dz_t, factors.to(tl.float32), d_w[s], input_precision=DOT),)
        d_w = new_w
        tl.store(
            dproj_base + (p_tile * (K * P))[:, None] + c[None, :], acc, mask=row_ok[:, None] & (c < P)[None, :]
        )

    for s in tl.static_range(V):
        ds = lane_d + s
        ok = ds < D
        row = (b * K + k) * D + ds
        # dz was accumulated times ln 2
        tl.store(
            dweight_ptr + row[:, None] * R + r[None, :], d_w[s] * LOG2E, mask=ok[:, None] & (r < R)[None, :]
        )
        out = dvec_ptr + (b * 3 * K + k) * D + ds
        tl.store(out, d_bias[s] * LOG2E, mask=ok)
        tl.store(out + K * D, d_a[s] * (a_nat[s] * LN2), mask=ok)
        tl.store(out + 2 * K * D, d_s[s], mask=ok)
