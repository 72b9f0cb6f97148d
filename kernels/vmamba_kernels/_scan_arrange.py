"""What goes around the general scan kernels: B, C and A in the order in which they are read, and gradients back.

The kernels walk the states of a tile one after the other and need each state's B and C at the tile's visits in every
lane. They read them from [B, G, tiles, N, 2, 8], in order of visit: one or two vector loads each, whatever the layout
and type of the inputs. The gradients to B and C are written in the same form, one per block of channels.
"""

import triton
import triton.language as tl

from ._primitives import LOG2E, TABLE, ex2
from ._walk import direction, tile_positions

VISITS = 64  # per program
NB = tl.constexpr(16)  # states per step


@triton.jit
def _visits(pid, tiles, index_ptr, L, visits, height, width, reciprocal, G, K: tl.constexpr, ORDER: tl.constexpr):
    """Of program pid: image, group, visits [64], their positions, which of them are tokens."""
    chunks = tl.cdiv(tiles, 8)
    g = (pid // chunks % G).to(tl.int64)
    b = (pid // (chunks * G)).to(tl.int64)
    j = pid % chunks * 64 + tl.arange(0, 64)
    step, mirror = direction(g, K, L, width, ORDER)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + g * visits
    p, ok = tile_positions(j, walk, visits, step, mirror, L, height, reciprocal, ORDER)
    return b, g, j, p.to(tl.int64), ok


@triton.jit(do_not_specialize=["L", "visits", "height", "width", "reciprocal", "tiles", "N", "G", "C"])
def arrange_kernel(
    b_ptr,  # [B, G, N, L] by strides
    c_ptr,  # likewise, or all ones without HAS_C
    bc_ptr,  # [B, G, tiles, N, 2, 8] fp32 or bf16
    a_ptr,  # [G, C, N], contiguous: A, or with LOG the logarithm of -A
    a_out_ptr,  # [G, N, C] fp32: A
    index_ptr,
    b_sb, b_sl, b_sg, b_sn,
    c_sb, c_sl, c_sg, c_sn,
    L, visits, height, width, reciprocal, tiles, N, G, C,
    programs,  # that do B and C; the others do A
    K: tl.constexpr,
    ORDER: tl.constexpr,
    LOG: tl.constexpr,
    HAS_C: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if pid < programs:
        b, g, j, p, ok = _visits(pid, tiles, index_ptr, L, visits, height, width, reciprocal, G, K, ORDER)
        inside = (j < tiles * 8)[:, None]
        out = bc_ptr + (((b * G + g) * tiles + j // 8) * N * 16 + j % 8)[:, None]
        b_at = b_ptr + b * b_sb + g * b_sg + (p * b_sl)[:, None]
        if HAS_C:
            c_at = c_ptr + b * c_sb + g * c_sg + (p * c_sl)[:, None]
        for n0 in range(0, N, NB):
            n = (n0 + tl.arange(0, NB))[None, :]
            given = ok[:, None] & (n < N)
            b_n = tl.load(b_at + n.to(tl.int64) * b_sn, mask=given, other=0.0).to(tl.float32)
            c_n = tl.full([64, NB], 1.0, tl.float32)
            if HAS_C:
                c_n = tl.load(c_at + n.to(tl.int64) * c_sn, mask=given, other=0.0).to(tl.float32)
            tl.store(out + n * 16, b_n, mask=inside & (n < N))
            tl.store(out + n * 16 + 8, c_n, mask=inside & (n < N))
    else:
        at = (pid - programs) * 1024 + tl.arange(0, 1024)
        n = at // C % N
        a_ok = at < G * C * N
        a = tl.load(a_ptr + (at // (C * N) * C + at % C) * N + n, mask=a_ok, other=0.0).to(tl.float32)
        if LOG:
            a = -ex2(a * LOG2E, FAST)
        tl.store(a_out_ptr + at, a, mask=a_ok)


@triton.jit(do_not_specialize=["B", "L", "visits", "height", "width", "reciprocal", "tiles", "N", "G", "blocks"])
def gather_kernel(
    dbc_ptr,  # [blocks, B, G, tiles, N, 2, 8] fp32
    db_ptr,  # [B, G, N, L] by strides
    dc_ptr,  # likewise, with HAS_C
    index_ptr,
    db_sb, db_sl, db_sg, db_sn,
    dc_sb, dc_sl, dc_sg, dc_sn,
    B, L, visits, height, width, reciprocal, tiles, N, G, blocks,
    K: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
):  # fmt: skip
    """Gradients to B and C: sums over the blocks of channels, at natural positions."""
    b, g, j, p, ok = _visits(tl.program_id(0), tiles, index_ptr, L, visits, height, width, reciprocal, G, K, ORDER)
    inside = (j < tiles * 8)[:, None]
    at = dbc_ptr + (((b * G + g) * tiles + j // 8) * N * 16 + j % 8)[:, None]
    plane = tl.cast(B, tl.int64) * G * tiles * N * 16
    db_at = db_ptr + b * db_sb + g * db_sg + (p * db_sl)[:, None]
    if HAS_C:
        dc_at = dc_ptr + b * dc_sb + g * dc_sg + (p * dc_sl)[:, None]
    for n0 in range(0, N, NB):
        n = (n0 + tl.arange(0, NB))[None, :]
        given = inside & (n < N)
        db = tl.zeros([64, NB], tl.float32)
        dc = tl.zeros([64, NB], tl.float32)
        for block in range(0, blocks):
            db += tl.load(at + block * plane + n * 16, mask=given, other=0.0)
            dc += tl.load(at + block * plane + n * 16 + 8, mask=given, other=0.0)
        given = ok[:, None] & (n < N)
        tl.store(db_at + n.to(tl.int64) * db_sn, db.to(db_ptr.dtype.element_ty), mask=given)
        if HAS_C:
            tl.store(dc_at + n.to(tl.int64) * dc_sn, dc.to(dc_ptr.dtype.element_ty), mask=given)
