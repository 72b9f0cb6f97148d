"""A program's own memory: shared memory that a warp keeps its states in, and through which B and C reach every lane.

Triton has no such thing. What a lane writes here it has back after some 30 cycles; in global memory after hundreds,
since a store does not leave its line in the first-level cache. ``OWN`` says whether a kernel uses it: for NVIDIA and
with few enough states. Else everything goes through global memory. In the interpreter, without ``FAST``, it is a piece
of global memory with the same addresses.
"""

import triton
import triton.language as tl

from ._memory import UNPACK, load_states, store_states, touch, uniform8

ROW = tl.constexpr(128)  # bytes of a row: an fp32 value per lane
MOST = tl.constexpr(48 * 1024)  # bytes that a program may have without asking the driver for more

# the same as ``UNPACK``, to shared memory
_WIDEN = tl.constexpr("""
    shl.b32 w, a, 16; and.b32 a, a, 0xffff0000; shl.b32 x, b, 16; and.b32 b, b, 0xffff0000;
    @p st.shared.v4.b32 [$1], {w, a, x, b};
    shl.b32 w, c, 16; and.b32 c, c, 0xffff0000; shl.b32 x, d, 16; and.b32 d, d, 0xffff0000;
    @p st.shared.v4.b32 [$1+16], {w, c, x, d};""")
_LOAD = tl.constexpr("ld.shared.v4.f32 {$0,$1,$2,$3}, [$8]; ld.shared.v4.f32 {$4,$5,$6,$7}, [$8+16];")
_LOAD_HALF = tl.constexpr("{ .reg .b32 a, b, c, d; ld.shared.v4.b32 {a, b, c, d}, [$8]; " + UNPACK.value + " }")


@triton.jit
def own_memory(SIZE: tl.constexpr, stand_in, FAST: tl.constexpr):
    """Address of ``SIZE`` bytes, at most ``MOST``: int32, in the interpreter int64. To be called once in a kernel.

    ``stand_in`` points to ``MOST`` bytes per program, in the interpreter. The address is a scalar, because Triton makes
    a tensor anew for every layout that it is used in, which gave as many memories.
    """
    if FAST:
        return tl.inline_asm_elementwise(
            f"{{ .shared .align 16 .b8 own[{SIZE}]; mov.u32 $0, own; }}",
            "=r,r",
            [0],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        return stand_in.to(tl.int64) + tl.program_id(0).to(tl.int64) * MOST


@triton.jit
def all_lanes(FAST: tl.constexpr, OWN: tl.constexpr):
    """All lanes see what any has written, and have read what they were to read."""
    if FAST and OWN:
        tl.inline_asm_elementwise(
            "{ bar.warp.sync 0xffffffff; mov.b32 $0, 0; }", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _pointer(address, dtype: tl.constexpr):
    """Of an address in the interpreter."""
    return address.to(tl.pointer_type(dtype))


@triton.jit
def load_kept(at, n, C: tl.constexpr, COUNT: tl.constexpr, ok, FAST: tl.constexpr, OWN: tl.constexpr):
    """``load_states`` from row n on of what is kept at ``at``: with ``OWN`` each lane's address, else pointers."""
    out = ()
    if OWN and not FAST:
        for i in tl.static_range(COUNT):
            out = out + (tl.load(_pointer(at + (n + i) * ROW, tl.float32)),)
    elif OWN:
        for i in tl.static_range(COUNT):
            row = tl.inline_asm_elementwise(
                "ld.shared.b32 $0, [$1];", "=f,r", [at + (n + i) * ROW], dtype=tl.float32, is_pure=False, pack=1
            )
            out = out + (row,)
    else:
        out = load_states(at + n * C, C, COUNT, ok, FAST)
    return out


@triton.jit
def store_kept(at, n, C: tl.constexpr, rows, ok, FAST: tl.constexpr, OWN: tl.constexpr):
    """The opposite of ``load_kept``."""
    if OWN and not FAST:
        for i in tl.static_range(len(rows)):
            tl.store(_pointer(at + (n + i) * ROW, tl.float32), rows[i])
    elif OWN:
        for i in tl.static_range(len(rows)):
            tl.inline_asm_elementwise(
                "{ st.shared.b32 [$1], $2; mov.b32 $0, 0; }",
                "=r,r,f",
                [at + (n + i) * ROW, rows[i]],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
    else:
        store_states(at + n * C, C, rows, ok, FAST)


@triton.jit
def send_bc(to, bc, N: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr):
    """Begin to copy B and C of a tile, [N, 2, 8] at ``bc``, to the address ``to``; see ``await_bc``."""
    if OWN and not FAST:
        for i in range(0, N * 16, 16):
            at = i + tl.arange(0, 16)
            tl.store(_pointer(to, bc.dtype.element_ty) + at, tl.load(bc + at))
    elif OWN:
        SIZE: tl.constexpr = N * 2 * bc.dtype.element_ty.primitive_bitwidth
        lane = tl.arange(0, 32)
        for i in tl.static_range((SIZE + 511) // 512):
            at = (lane + 32 * i) * 16
            tl.inline_asm_elementwise(
                f"{{ .reg .pred p; setp.lt.s32 p, $3, {SIZE};"
                + "@p cp.async.cg.shared.global [$1], [$2], 16; mov.b32 $0, 0; }",
                "=r,r,l,r",
                [to + at, bc.to(tl.int64) + at, at],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )
    else:
        touch(bc, N * 16, 32, FAST)


@triton.jit
def await_bc(FAST: tl.constexpr, OWN: tl.constexpr):
    """What was sent is there for all lanes, and all have read what was there before."""
    if FAST and OWN:
        tl.inline_asm_elementwise(
            "{ cp.async.wait_all; mov.b32 $0, 0; }", "=r,r", [0], dtype=tl.int32, is_pure=False, pack=1
        )
        all_lanes(FAST, OWN)


@triton.jit
def widen_bc(to, source, N: tl.constexpr, dtype: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr):
    """``await_bc``, then copy what was sent to ``source`` as ``dtype`` to ``to`` as fp32."""
    await_bc(FAST, OWN)
    if OWN and not FAST:
        for i in range(0, N * 16, 16):
            at = i + tl.arange(0, 16)
            tl.store(_pointer(to, tl.float32) + at, tl.load(_pointer(source, dtype) + at).to(tl.float32))
    elif OWN:
        HALF: tl.constexpr = dtype == tl.bfloat16
        code: tl.constexpr = _WIDEN if HALF else "@p st.shared.v4.b32 [$1], {a, b, c, d};"
        PARTS: tl.constexpr = N * (2 if HALF else 4)  # of 16 bytes
        lane = tl.arange(0, 32)
        for i in tl.static_range((PARTS + 31) // 32):
            part = lane + 32 * i
            tl.inline_asm_elementwise(
                f"{{ .reg .pred p; .reg .b32 a, b, c, d, w, x; setp.lt.s32 p, $3, {PARTS};"
                + "@p ld.shared.v4.b32 {a, b, c, d}, [$2];" + code + "mov.b32 $0, 0; }",
                "=r,r,r,r",
                [to + part * (32 if HALF else 16), source + part * 16, part],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )  # fmt: skip
        all_lanes(FAST, OWN)


@triton.jit
def load_bc(own, bc, n, WHICH: tl.constexpr, dtype: tl.constexpr, FAST: tl.constexpr, OWN: tl.constexpr):
    """B (``WHICH`` 0) or C (1) of state n at a tile's visits, as fp32 in every lane: 8 vectors [32].

    They are at the address ``own`` as ``dtype``, or without ``OWN`` at the pointer ``bc``.
    """
    if OWN and not FAST:
        return uniform8(_pointer(own, dtype) + n * 16 + WHICH * 8, FAST)
    elif OWN:
        code: tl.constexpr = _LOAD_HALF if dtype == tl.bfloat16 else _LOAD
        return tl.inline_asm_elementwise(
            code,
            "=r,=r,=r,=r,=r,=r,=r,=r,r",
            [own + n * (2 * dtype.primitive_bitwidth) + WHICH * dtype.primitive_bitwidth],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        return uniform8(bc + n * 16 + WHICH * 8, FAST)
