"""Gradients of the Mamba-2 scan within a tile of steps, from the states on both sides of it.

Two kernels, because one would hold more than there are registers: one for what belongs to a head, one for B and C,
which the heads of a group share.
"""

import triton
import triton.language as tl

from ._ssd_tiles import decays, dot, load_bias, load_steps, load_tile, logarithms, state_offsets


@triton.jit(do_not_specialize=["L", "tiles"])
def ssd_backward_kernel(
    dy_ptr,  # [B, L, H, P], strides (dy_sb, dy_st, dy_sh, 1)
    x_ptr,  # the same, strides (x_sb, x_st, x_sh, 1)
    dt_ptr,  # [B, L, H], strides (dt_sb, dt_st, 1)
    a_ptr,  # [H]
    b_ptr,  # [B, L, G, N], strides (b_sb, b_st, b_sg, 1)
    c_ptr,
    skip_ptr,  # [H, P]
    bias_ptr,  # [H]
    states_ptr,  # [B, H, tiles, P, N], states before each tile; of all tokens, [B, H, P, N], where not CAUSAL
    dstates_ptr,  # the same, gradients to the states after each tile
    dx_ptr,  # [B, L, H, P], contiguous
    ddt_ptr,  # [B, L, H]
    dvec_ptr,  # [B, tiles, H, 2], parts of the gradients to A and to the bias
    dskip_ptr,  # [B, tiles, H, P]
    dy_sb,
    dy_st,
    dy_sh,
    x_sb,
    x_st,
    x_sh,
    dt_sb,
    dt_st,
    b_sb,
    b_st,
    b_sg,
    c_sb,
    c_st,
    c_sg,
    L,
    tiles,
    H: tl.constexpr,
    HEADS: tl.constexpr,  # per group
    P: tl.constexpr,
    N: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    """Gradients to x, dt, A, D and the bias from one tile of one head of one image.

    With M[t, s] the part of the loss that input s has through output t, the logarithm of the decay of step u gets the
    sum of M over s < u <= t: from both within the tile, from an s before it (``r``), from a t after it (``q``), and
    from both outside.
    """
    pid = tl.program_id(0)
    tile = pid % tiles
    h = pid // tiles % H
    b = (pid // tiles // H).to(tl.int64)
    p, n, t = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, T)
    offset, inside = state_offsets(p, n, P, N)
    at = tile * T + t
    valid = at < L
    row = b * L + at
    rate = tl.load(a_ptr + h).to(tl.float32)
    step, slope = load_steps(dt_ptr + b * dt_sb + h, at, dt_st, valid, load_bias(bias_ptr, h, HAS_BIAS), SOFTPLUS)
    x = load_tile(x_ptr + b * x_sb + h * x_sh, at, x_st, valid, p, P)
    dy = load_tile(dy_ptr + b * dy_sb + h * dy_sh, at, dy_st, valid, p, P)
    m = load_tile(b_ptr + b * b_sb + h // HEADS * b_sg, at, b_st, valid, n, N)
    at_state = ((b * H + h) * tiles + tile if CAUSAL else b * H + h) * P * N
    dstate = tl.load(dstates_ptr + at_state + offset, mask=inside, other=0.0)
    dinput = dot(m, tl.trans(dstate), PRECISION, FAST)  # [T, BP], to what the state is given
    if CAUSAL:
        c = load_tile(c_ptr + b * c_sb + h // HEADS * c_sg, at, c_st, valid, n, N)
        state = tl.load(states_ptr + at_state + offset, mask=inside, other=0.0)
        total, end = logarithms(step, rate, T)
        r = tl.exp(total) * tl.sum(dy.to(tl.float32) * dot(c, tl.trans(state), PRECISION, FAST), 1)
        around = tl.exp(end) * tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
        dinput *= tl.exp(end - total)[:, None]
        q = step * tl.sum(x.to(tl.float32) * dinput, 1)
        weights = dot(c, tl.trans(m), PRECISION, FAST) * decays(total, T)  # [t, s]
        pairs = dot(dy, tl.trans(x), PRECISION, FAST) * weights * step[None, :]
        pairs = tl.where(t[:, None] == t[None, :], 0.0, pairs)
        r += tl.sum(pairs, 1) - tl.sum(pairs, 0)
        dinput += dot(tl.trans(weights), dy, PRECISION, FAST)
        # not a cumulative sum less q: where decays are strong, what is left of that difference is rounding
        before = tl.sum(tl.where(t[:, None] > t[None, :], q[None, :], 0.0), 1)
        dlog = tl.cumsum(r, 0, reverse=True) + before + around
        given = step
        dstep = dlog * rate + tl.sum(x.to(tl.float32) * dinput, 1)
        drate = dlog * step
    else:
        given = step * -rate
        dgiven = tl.sum(x.to(tl.float32) * dinput, 1)
        dstep = dgiven * -rate
        drate = dgiven * -step
    dx = dinput * given[:, None]
    if HAS_SKIP:
        skip = tl.load(skip_ptr + h * P + p, mask=p < P, other=0.0).to(tl.float32)
        dx += dy.to(tl.float32) * skip[None, :]
        dskip = tl.sum(dy.to(tl.float32) * x.to(tl.float32), 0)
        tl.store(dskip_ptr + ((b * tiles + tile) * H + h) * P + p, dskip, mask=p < P)
    in_p = valid[:, None] & (p < P)[None, :]
    tl.store(dx_ptr + row[:, None] * (H * P) + h * P + p[None, :], dx.to(dx_ptr.dtype.element_ty), mask=in_p)
    ddt = tl.where(valid, dstep * slope, 0.0)
    tl.store(ddt_ptr + row * H + h, ddt.to(ddt_ptr.dtype.element_ty), mask=valid)
    at_vec = ((b * tiles + tile) * H + h) * 2
    tl.store(dvec_ptr + at_vec, tl.sum(drate, 0))
    tl.store(dvec_ptr + at_vec + 1, tl.sum(ddt, 0))


@triton.jit(do_not_specialize=["L", "tiles", "heads"])
def ssd_group_kernel(
    dy_ptr,  # as above
    x_ptr,
    dt_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    bias_ptr,
    states_ptr,
    dstates_ptr,
    db_ptr,  # [B, L, G, N], contiguous
    dc_ptr,
    dy_sb,
    dy_st,
    dy_sh,
    x_sb,
    x_st,
    x_sh,
    dt_sb,
    dt_st,
    b_sb,
    b_st,
    b_sg,
    c_sb,
    c_st,
    c_sg,
    L,
    tiles,
    heads,  # HEADS again: with a number of rounds that it knows the compiler unrolls the loop, and spills
    H: tl.constexpr,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    """Gradients to B and C from one tile: one head of the group after another, so that no sum needs atomics."""
    GROUPS: tl.constexpr = H // HEADS
    pid = tl.program_id(0)
    tile = pid % tiles
    g = pid // tiles % GROUPS
    b = (pid // tiles // GROUPS).to(tl.int64)
    p, n, t = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, T)
    offset, inside = state_offsets(p, n, P, N)
    at = tile * T + t
    valid = at < L
    db = tl.zeros([T, BN], tl.float32)
    dc = tl.zeros([T, BN], tl.float32)
    if CAUSAL:
        dproducts = tl.zeros([T, T], tl.float32)

    for i in range(heads):
        h = g * HEADS + i
        rate = tl.load(a_ptr + h).to(tl.float32)
        step, _ = load_steps(dt_ptr + b * dt_sb + h, at, dt_st, valid, load_bias(bias_ptr, h, HAS_BIAS), SOFTPLUS)
        x = load_tile(x_ptr + b * x_sb + h * x_sh, at, x_st, valid, p, P)
        dy = load_tile(dy_ptr + b * dy_sb + h * dy_sh, at, dy_st, valid, p, P)
        at_state = ((b * H + h) * tiles + tile if CAUSAL else b * H + h) * P * N
        state = tl.load(states_ptr + at_state + offset, mask=inside, other=0.0)
        dstate = tl.load(dstates_ptr + at_state + offset, mask=inside, other=0.0)
        if CAUSAL:
            total, end = logarithms(step, rate, T)
            dproducts += dot(dy, tl.trans(x), PRECISION, FAST) * decays(total, T) * step[None, :]
            dc += dot(dy, state, PRECISION, FAST) * tl.exp(total)[:, None]
            db += dot(x, dstate, PRECISION, FAST) * (step * tl.exp(end - total))[:, None]
        else:
            dc += dot(dy, state, PRECISION, FAST)
            db += dot(x, dstate, PRECISION, FAST) * (step * -rate)[:, None]

    if CAUSAL:
        m = load_tile(b_ptr + b * b_sb + g * b_sg, at, b_st, valid, n, N)
        c = load_tile(c_ptr + b * c_sb + g * c_sg, at, c_st, valid, n, N)
        dc += dot(dproducts, m, PRECISION, FAST)
        db += dot(tl.trans(dproducts), c, PRECISION, FAST)
    at_n = (b * L + at)[:, None] * (GROUPS * N) + g * N + n[None, :]
    in_n = valid[:, None] & (n < N)[None, :]
    tl.store(db_ptr + at_n, db.to(db_ptr.dtype.element_ty), mask=in_n)
    tl.store(dc_ptr + at_n, dc.to(dc_ptr.dtype.element_ty), mask=in_n)
