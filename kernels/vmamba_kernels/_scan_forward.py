"""Forward kernel of a selective scan with any number of states, over any strides.

Serves ``selective_scan`` (delta given, G channel groups, one direction) and ``ss2d`` with N > 1 (delta from factors,
K directions): both are B x G scans of C channels, where a group owns parameters, B and C. The states of a channel are
walked one after the other within a tile of 8 visits; between tiles a few stay in registers, and many rest in
``running_ptr``, so that N costs no registers. A long sequence is cut into segments, see ``_segments``.
"""

import triton
import triton.language as tl

from ._delta import load_weight, product
from ._memory import load_states, store_states, touch_at
from ._own_memory import ROW, await_bc, load_bc, load_kept, own_memory, send_bc, store_kept
from ._primitives import LN2, LOG2E, TABLE, ex2, pack8, softplus2, unpack8
from ._walk import direction, tile_positions

SEQUENCE = ["L", "visits", "height", "width", "reciprocal", "tiles", "segments", "span", "G"]


@triton.jit
def place(pid, segments, G, C: tl.constexpr):
    """Of program pid: image, segment, group, block of channels, the channels [32], and which of them exist."""
    BLOCKS: tl.constexpr = (C + 31) // 32
    block = pid % BLOCKS
    g = pid // BLOCKS % G
    segment = pid // (BLOCKS * G) % segments
    b = (pid // (BLOCKS * G * segments)).to(tl.int64)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < C
    if C % 32 == 0:  # known to the compiler, which then drops every mask made of it
        d_ok = tl.full([32], 1, tl.int1)
    return b, segment, g.to(tl.int64), block, d, d_ok


@triton.jit
def load_channels(ptr, at, ok, GIVEN: tl.constexpr):
    """Values as fp32 [32]; zeros where not given."""
    if GIVEN:
        return tl.load(ptr + at, mask=ok, other=0.0).to(tl.float32)
    else:
        return tl.zeros([32], tl.float32)


@triton.jit
def load_delta_weights(weight_ptr, offset, d, d_ok, R: tl.constexpr, dtype: tl.constexpr):
    """Weights of delta [32, 16] in two parts, in chunks of 16 factors."""
    out = ()
    for chunk in tl.static_range((R + 15) // 16):
        r = tl.arange(0, 16) + 16 * chunk
        out = out + (load_weight(weight_ptr + offset, d[:, None], r[None, :], d_ok[:, None], R, dtype),)
    return out


@triton.jit
def tile_rows(tile, walk, visits, step, mirror, L, height, reciprocal, ORDER: tl.constexpr):
    """Positions [8] of a tile's visits, and which of them are tokens."""
    visit = tile * 8 + tl.arange(0, 8)
    p, ok_t = tile_positions(visit, walk, visits, step, mirror, L, height, reciprocal, ORDER)
    return p.to(tl.int64), ok_t


@triton.jit
def load_rows(
    at, ok_t, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, R: tl.constexpr
):  # fmt: skip
    """x and delta (or its factors) at the positions, as they come."""
    ok = ok_t[:, None] & d_ok[None, :]
    x = tl.load(x_ptr + x_off + at[:, None] * x_sl, mask=ok, other=0.0)
    delta = ()
    if R == 0:
        delta = (tl.load(delta_ptr + d_off + at[:, None] * d_sl, mask=ok, other=0.0),)
    for chunk in tl.static_range((R + 15) // 16):
        r = tl.arange(0, 16) + 16 * chunk
        f_at = factors_ptr + f_off + (at * f_sl)[:, None] + r[None, :]
        delta = delta + (tl.load(f_at, mask=ok_t[:, None] & (r < R)[None, :], other=0.0),)
    return x, delta


@triton.jit
def touch_rows(
    at, x_ptr, x_first, x_sl, delta_ptr, d_first, d_sl, factors_ptr, f_off, f_sl, R: tl.constexpr, FAST: tl.constexpr
):  # fmt: skip
    """Fetch what ``load_rows`` will read; ``x_first`` and ``d_first`` are the offsets of the first channel."""
    touch_at(x_ptr + x_first + at * x_sl, FAST)
    if R == 0:
        touch_at(delta_ptr + d_first + at * d_sl, FAST)
    else:
        touch_at(factors_ptr + f_off + at * f_sl, FAST)


@triton.jit
def read_tile(
    tile, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits, step, mirror, L,
    height, reciprocal, R: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Both, one tile ahead: what comes from memory is used a tile later."""
    at, ok_t = tile_rows(tile, walk, visits, step, mirror, L, height, reciprocal, ORDER)
    x, delta = load_rows(at, ok_t, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, R)
    return at, ok_t, x, delta


@triton.jit
def vectors(tile):
    """Eight tokens of 32 channels, [8, 32]: 8 vectors [32]."""
    return unpack8(tl.trans(tile))


@triton.jit
def store_tile(ptr, at, columns, ok):
    """Write eight tokens of 32 channels, given as 8 vectors, at offsets [8, 32]."""
    tl.store(ptr + at, tl.trans(pack8(columns)).to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def scan_delta(delta, weights, bias, R: tl.constexpr, FAST: tl.constexpr):
    """Pre-activations of delta in units of log 2: 8 vectors [32]. From what ``read_tile`` gave."""
    if R == 0:
        z = (tl.trans(delta[0]).to(tl.float32) + bias[:, None]) * LOG2E
    else:
        z = tl.zeros([32, 8], tl.float32) + bias[:, None] * LOG2E
        for chunk in tl.static_range(len(delta)):
            factors = tl.trans(delta[chunk])
            z = product(weights[chunk][0], factors, z, FAST)
            if factors.dtype != tl.float32:
                z = product(weights[chunk][1], factors, z, FAST)
    return unpack8(z)


@triton.jit
def step_sizes(z2, visit, visits, SOFTPLUS: tl.constexpr, PRECISE: tl.constexpr, FAST: tl.constexpr):
    """Delta in units of log 2 from its pre-activations; 0 past the end, where the state stays what it is."""
    delta2 = ()
    for t in tl.static_range(8):
        if SOFTPLUS:
            dl = softplus2(z2[t], FAST, PRECISE)
        else:
            dl = z2[t]
        delta2 = delta2 + (tl.where(visit + t < visits, dl, 0.0),)
    return delta2


@triton.jit
def inputs(delta2, xs):
    """What multiplies B: delta times x."""
    v = ()
    for t in tl.static_range(8):
        v = v + (delta2[t] * xs[t].to(tl.float32) * LN2,)
    return v


@triton.jit(do_not_specialize=[*SEQUENCE, "every", "enters"])
def scan_fwd_kernel(
    x_ptr,  # [B, L, G, C] by strides
    delta_ptr,  # [B, L, G, C] by strides, only for R == 0
    factors_ptr,  # [B, L, G, R] by strides f_sb, f_sl, f_sg, 1; only for R > 0
    weight_ptr,  # [G, C, R]
    bias_ptr,  # [G, C]
    a_ptr,  # [G, N, C]
    bc_ptr,  # [B, G, tiles, N, 2, 8], see _scan_arrange
    skip_ptr,  # [G, C]
    gate_ptr,  # [B, L, G, C] by strides
    y_ptr,  # [B, L, G, C] by strides
    out_ptr,  # gated y, strides of y
    running_ptr,  # [B, G, segments, N, C] fp32: the state after each segment; with ``enters`` it holds that before it
    states_ptr,  # [B, G, groups of tiles, N, C] fp32 or bf16: state before each group
    index_ptr,
    own_ptr,  # in the interpreter, for ``own_memory``
    x_sb, x_sl, x_sg, x_sc,
    d_sb, d_sl, d_sg, d_sc,
    f_sb, f_sl, f_sg,
    z_sb, z_sl, z_sg, z_sc,
    y_sb, y_sl, y_sg, y_sc,
    L, visits, height, width, reciprocal, tiles, segments, span, G,
    every, enters,
    N: tl.constexpr,
    NB: tl.constexpr,  # states at a time; N: all stay in registers, else they rest in ``running_ptr`` between tiles
    OWN: tl.constexpr,  # B and C go through the program's own memory
    C: tl.constexpr,
    K: tl.constexpr,  # directions; groups are directions if K > 1
    R: tl.constexpr,
    ORDER: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    b, segment, g, _, d, d_ok = place(tl.program_id(0), segments, G, C)
    step, mirror = direction(g, K, L, width, ORDER)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g * visits
    bias = load_channels(bias_ptr, g * C + d, d_ok, HAS_BIAS)
    skip = load_channels(skip_ptr, g * C + d, d_ok, HAS_SKIP)
    factors_type: tl.constexpr = factors_ptr.dtype.element_ty if R > 0 else tl.float32
    weights = load_delta_weights(weight_ptr, g * C * R, d, d_ok, R, factors_type)
    d64 = d[None, :].to(tl.int64)
    x_off = b * x_sb + g * x_sg + d64 * x_sc
    y_off = b * y_sb + g * y_sg + d64 * y_sc
    d_off = tl.zeros([1, 32], tl.int64)
    if R == 0:
        d_off = b * d_sb + g * d_sg + d64 * d_sc
    running_base = running_ptr + ((b * G + g) * segments + segment) * N * C + d
    a_base = a_ptr + g * N * C + d
    bc_base = bc_ptr + (b * G + g) * tiles * N * 16
    groups = tl.cdiv(tiles, every)

    f_off = b * f_sb + g * f_sg
    begin = segment * span
    end = tl.minimum(begin + span, tiles)
    at, ok_t, x, delta = read_tile(
        begin, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits, step, mirror,
        L, height, reciprocal, R, ORDER,
    )  # fmt: skip
    bc_type: tl.constexpr = bc_ptr.dtype.element_ty
    SIZE: tl.constexpr = N * 2 * bc_type.primitive_bitwidth  # bytes of a tile's B and C, of which two tiles take turns
    own_bc = 0
    a_at = a_base
    if OWN:
        own_bc = own_memory(2 * SIZE + N * ROW, own_ptr, FAST)
        a_at = own_bc + 2 * SIZE + tl.arange(0, 32) * 4
        store_kept(a_at, 0, C, load_states(a_base, C, N, d_ok, FAST), d_ok, FAST, OWN)
    send_bc(own_bc + begin % 2 * SIZE, bc_base + tl.cast(begin, tl.int64) * N * 16, N, FAST, OWN)
    if NB == N:
        h = load_states(running_base, C, NB, d_ok & (enters != 0), FAST)
    for tile in range(begin, end):
        bc = bc_base + tl.cast(tile, tl.int64) * N * 16
        bc_next = bc_base + tl.cast(tl.minimum(tile + 1, end - 1), tl.int64) * N * 16
        await_bc(FAST, OWN)
        send_bc(own_bc + (tile + 1) % 2 * SIZE, bc_next, N, FAST, OWN)
        own_tile = own_bc + tile % 2 * SIZE
        if SAVE:
            save = d_ok & (tile % every == 0)
            state_at = states_ptr + ((b * G + g) * groups + tile // every) * N * C + d
        if NB < N:
            stays = d_ok & ((tile > begin) | (enters != 0))
            a = load_states(a_base, C, NB, d_ok, FAST)
            h = load_states(running_base, C, NB, stays, FAST)
        xs = vectors(x)
        z2 = scan_delta(delta, weights, bias, R, FAST)
        at_next, ok_next, x, delta = read_tile(
            tile + 1, d_ok, x_ptr, x_off, x_sl, delta_ptr, d_off, d_sl, factors_ptr, f_off, f_sl, walk, visits, step,
            mirror, L, height, reciprocal, R, ORDER,
        )  # fmt: skip
        delta2 = step_sizes(z2, tile * 8, visits, SOFTPLUS, PRECISE, FAST)
        v = inputs(delta2, xs)
        ys = ()
        for t in tl.static_range(8):
            ys = ys + (xs[t].to(tl.float32) * skip,)
        for n in range(0, N, NB):
            if NB < N:
                ahead = tl.minimum(n + NB, N - NB)
                a_next = load_states(a_base + ahead * C, C, NB, d_ok, FAST)
                h_next = load_states(running_base + ahead * C, C, NB, stays, FAST)
            if SAVE:
                store_states(state_at + n * C, C, h, save, FAST)
            new_h = ()
            for i in tl.static_range(NB):
                b_n = load_bc(own_tile, bc, n + i, 0, bc_type, FAST, OWN)
                c_n = load_bc(own_tile, bc, n + i, 1, bc_type, FAST, OWN)
                a_n = load_kept(a_at, n + i, C, 1, d_ok, FAST, OWN)[0] if NB == N else a[i]
                h_n = h[i]
                new_y = ()
                for t in tl.static_range(8):
                    h_n = tl.fma(ex2(a_n * delta2[t], FAST), h_n, b_n[t] * v[t])
                    new_y = new_y + (ys[t] + c_n[t] * h_n,)
                ys = new_y
                new_h = new_h + (h_n,)
            h = new_h
            if NB < N:
                store_states(running_base + n * C, C, new_h, d_ok, FAST)
                a = a_next
                h = h_next
        ok = ok_t[:, None] & d_ok[None, :]
        y_at = y_off + at[:, None] * y_sl
        store_tile(y_ptr, y_at, ys, ok)
        if HAS_GATE:
            z_at = b * z_sb + g * z_sg + d64 * z_sc + at[:, None] * z_sl
            gates = vectors(tl.load(gate_ptr + z_at, mask=ok, other=0.0))
            gated = ()
            for t in tl.static_range(8):
                gate = gates[t].to(tl.float32)
                gated = gated + (ys[t] * gate * tl.sigmoid(gate),)
            store_tile(out_ptr, y_at, gated, ok)
        at = at_next
        ok_t = ok_next
    if NB == N:
        store_states(running_base, C, h, d_ok, FAST)
