"""The Mamba-2 scan forwards: products within a tile of steps, and the state from tile to tile in registers."""

import triton
import triton.language as tl

from ._ssd_tiles import decays, dot, load_bias, load_steps, load_tile, logarithms, state_offsets


@triton.jit(do_not_specialize=["L", "segments", "segment"])
def ssd_forward_kernel(
    x_ptr,  # [B, L, H, P], strides (x_sb, x_st, x_sh, 1)
    dt_ptr,  # [B, L, H], strides (dt_sb, dt_st, 1)
    a_ptr,  # [H]
    b_ptr,  # [B, L, G, N], strides (b_sb, b_st, b_sg, 1)
    c_ptr,  # the same, strides (c_sb, c_st, c_sg, 1)
    skip_ptr,  # [H, P]
    bias_ptr,  # [H]
    start_ptr,  # [B, H, segments, P, N], states before each segment; the sum of all tokens' where not CAUSAL
    y_ptr,  # [B, L, H, P], contiguous
    last_ptr,  # [B, H, P, N]
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
    segments,
    segment,  # steps of one, a multiple of T
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
    HAS_START: tl.constexpr,
    LAST: tl.constexpr,
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    """One segment of one head of one image."""
    pid = tl.program_id(0)
    piece = pid % segments
    h = pid // segments % H
    b = (pid // segments // H).to(tl.int64)
    p, n, t = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, T)
    offset, inside = state_offsets(p, n, P, N)
    x_ptr += b * x_sb + h * x_sh
    dt_ptr += b * dt_sb + h
    b_ptr += b * b_sb + h // HEADS * b_sg
    c_ptr += b * c_sb + h // HEADS * c_sg
    y_ptr += b * L * H * P + h * P
    rate = tl.load(a_ptr + h).to(tl.float32)
    bias = load_bias(bias_ptr, h, HAS_BIAS)
    if HAS_SKIP:
        skip = tl.load(skip_ptr + h * P + p, mask=p < P, other=0.0).to(tl.float32)
    if HAS_START:
        at_state = (b * H + h) * (segments if CAUSAL else 1) + (piece if CAUSAL else 0)
        state = tl.load(start_ptr + at_state * P * N + offset, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([BP, BN], tl.float32)

    for first in range(piece * segment, tl.minimum((piece + 1) * segment, L), T):
        at = first + t
        valid = at < L
        x = load_tile(x_ptr, at, x_st, valid, p, P)
        c = load_tile(c_ptr, at, c_st, valid, n, N)
        y = dot(c, tl.trans(state), PRECISION, FAST)
        if CAUSAL:
            m = load_tile(b_ptr, at, b_st, valid, n, N)
            step, _ = load_steps(dt_ptr, at, dt_st, valid, bias, SOFTPLUS)
            total, end = logarithms(step, rate, T)
            weights = dot(c, tl.trans(m), PRECISION, FAST) * decays(total, T) * step[None, :]
            y = y * tl.exp(total)[:, None] + dot(weights, x, PRECISION, FAST)
            drive = x.to(tl.float32) * (step * tl.exp(end - total))[:, None]
            state = state * tl.exp(end) + dot(tl.trans(drive), m, PRECISION, FAST)
        if HAS_SKIP:
            y += x.to(tl.float32) * skip[None, :]
        at_y = at.to(tl.int64)[:, None] * (H * P) + p[None, :]
        tl.store(y_ptr + at_y, y.to(y_ptr.dtype.element_ty), mask=valid[:, None] & (p < P)[None, :])
    if LAST:
        tl.store(last_ptr + (b * H + h) * P * N + offset, state, mask=inside)


@triton.jit(do_not_specialize=["L", "segments", "segment", "tiles"])
def ssd_states_kernel(
    x_ptr,  # [B, L, H, P], what a step adds to the state: x, or the gradient to y
    dt_ptr,
    a_ptr,
    b_ptr,  # [B, L, G, N], by which it does: B, or C
    bias_ptr,
    start_ptr,  # [B, H, segments, P, N]
    states_ptr,  # [B, H, tiles, P, N], states before each tile; after it where REVERSE
    ends_ptr,  # [B, H, segments, P, N], states after each segment
    decay_ptr,  # [B, H, segments], sums of the logarithms of the decays
    x_sb,
    x_st,
    x_sh,
    dt_sb,
    dt_st,
    b_sb,
    b_st,
    b_sg,
    L,
    segments,
    segment,
    tiles,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    T: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_START: tl.constexpr,
    SAVE: tl.constexpr,
    ENDS: tl.constexpr,
    REVERSE: tl.constexpr,  # the gradient to the state, from the last step to the first
    CAUSAL: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    """States, or gradients to them, along one segment of one head of one image."""
    pid = tl.program_id(0)
    piece = pid % segments
    h = pid // segments % H
    b = (pid // segments // H).to(tl.int64)
    p, n, t = tl.arange(0, BP), tl.arange(0, BN), tl.arange(0, T)
    offset, inside = state_offsets(p, n, P, N)
    x_ptr += b * x_sb + h * x_sh
    dt_ptr += b * dt_sb + h
    b_ptr += b * b_sb + h // HEADS * b_sg
    rate = tl.load(a_ptr + h).to(tl.float32)
    bias = load_bias(bias_ptr, h, HAS_BIAS)
    at_segment = (b * H + h) * segments + piece
    if HAS_START:
        state = tl.load(start_ptr + at_segment * P * N + offset, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([BP, BN], tl.float32)
    decay = 0.0

    begin, end = piece * segment, tl.minimum((piece + 1) * segment, L)
    count = tl.cdiv(end - begin, T)
    for i in range(count):
        tile = count - 1 - i if REVERSE else i
        at = begin + tile * T + t
        valid = at < L
        if SAVE:
            place = states_ptr + ((b * H + h) * tiles + begin // T + tile) * P * N
            tl.store(place + offset, state.to(states_ptr.dtype.element_ty), mask=inside)
        x = load_tile(x_ptr, at, x_st, valid, p, P)
        m = load_tile(b_ptr, at, b_st, valid, n, N)
        step, _ = load_steps(dt_ptr, at, dt_st, valid, bias, SOFTPLUS)
        if CAUSAL:
            total, whole = logarithms(step, rate, T)
            weight = tl.exp(total) if REVERSE else step * tl.exp(whole - total)
            state = state * tl.exp(whole)
            decay += whole
        else:
            weight = step * 0.0 + 1.0 if REVERSE else step * -rate
        state += dot(tl.trans(x.to(tl.float32) * weight[:, None]), m, PRECISION, FAST)
    if ENDS:
        tl.store(ends_ptr + at_segment * P * N + offset, state, mask=inside)
        tl.store(decay_ptr + at_segment, decay)


@triton.jit(do_not_specialize=["segments"])
def ssd_carry_kernel(
    ends_ptr,  # [B, H, segments, P * N], states after each segment, from zero; made the states before each
    start_ptr,  # [B, H, P * N], state before everything
    decay_ptr,  # [B, H, segments], sums of the logarithms of the decays
    last_ptr,  # [B, H, P * N], state after everything
    segments,
    SIZE: tl.constexpr,  # P * N
    BLOCK: tl.constexpr,
    HAS_START: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Chains the segments of some states of one head of one image."""
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    at = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    head = (pid // BLOCKS).to(tl.int64)
    inside = at < SIZE
    if HAS_START:
        state = tl.load(start_ptr + head * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros([BLOCK], tl.float32)
    for i in range(segments):
        piece = head * segments + (segments - 1 - i if REVERSE else i)
        end = tl.load(ends_ptr + piece * SIZE + at, mask=inside, other=0.0)
        tl.store(ends_ptr + piece * SIZE + at, state, mask=inside)
        state = state * tl.exp(tl.load(decay_ptr + piece)) + end
    tl.store(last_ptr + head * SIZE + at, state, mask=inside)
