"""Device functions that read and write memory where ``tl.load`` and ``tl.store`` fall short; see each for how."""

import triton
import triton.language as tl

# eight bf16 values in a, b, c, d, two to a register, to fp32
UNPACK = tl.constexpr("""
    shl.b32 $0, a, 16; and.b32 $1, a, 0xffff0000; shl.b32 $2, b, 16; and.b32 $3, b, 0xffff0000;
    shl.b32 $4, c, 16; and.b32 $5, c, 0xffff0000; shl.b32 $6, d, 16; and.b32 $7, d, 0xffff0000;""")
_LOAD = tl.constexpr("mov.b32 $0, 0; @p ld.global.b32 $0, [$1];")
_LOAD_HALF = tl.constexpr(
    ".reg .b16 none, h; mov.b16 none, 0; mov.b16 h, 0; @p ld.global.b16 h, [$1]; mov.b32 $0, {none, h};"
)
_STORE = tl.constexpr("@p st.global.b32 [$1], $2;")
_STORE_HALF = tl.constexpr(".reg .b16 h; cvt.rn.bf16.f32 h, $2; @p st.global.b16 [$1], h;")


@triton.jit
def uniform8(ptr, FAST: tl.constexpr):
    """Eight consecutive values (fp32 or bf16) at a 16-byte aligned address, as fp32 in every lane: 8 vectors [32].

    Vector loads at one address. As ``tl.load`` the values would land in one lane each and be spread through shared
    memory. The memory must not be written by the kernel.
    """
    if FAST:
        at = tl.zeros([32], tl.int64) + ptr.to(tl.int64)
        if ptr.dtype.element_ty == tl.bfloat16:
            return _load8(at)
        low = _load4(at, False)
        high = _load4(at + 16, False)
        return low + high
    else:
        out = ()
        for t in tl.static_range(8):
            out = out + (tl.load(ptr + t).to(tl.float32),)
        return out


@triton.jit
def load_uniform(ptr, FAST: tl.constexpr):
    """The values of ``uniform8`` for ``unpack_uniform``; until then bf16 values are two to a register.

    Unlike the loads there, these stay before the stores that they are written before.
    """
    if FAST:
        at = tl.zeros([32], tl.int64) + ptr.to(tl.int64)
        if ptr.dtype.element_ty == tl.bfloat16:
            return _load4(at, True)
        else:
            return _load4(at, True) + _load4(at + 16, True)
    else:
        return uniform8(ptr, FAST)


@triton.jit
def unpack_uniform(loaded):
    """The 8 vectors of ``uniform8`` from what ``load_uniform`` gave."""
    if len(loaded) == 4:
        out = ()
        for i in tl.static_range(4):
            pair = loaded[i].to(tl.int32, bitcast=True)
            out = out + ((pair << 16).to(tl.float32, bitcast=True), (pair & -65536).to(tl.float32, bitcast=True))
        return out
    else:
        return loaded


@triton.jit
def touch(ptr, SIZE: tl.constexpr, STRIDE: tl.constexpr, FAST: tl.constexpr):
    """Fetch the lines of 128 bytes at ptr, ptr + STRIDE, ... below ptr + SIZE; see ``touch_at``."""
    if FAST:
        LINES: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
        lane = tl.arange(0, 32)
        for i in tl.static_range((LINES + 31) // 32):
            touch_at(ptr + tl.minimum(lane + 32 * i, LINES - 1) * STRIDE, FAST)


@triton.jit
def touch_at(at, FAST: tl.constexpr):
    """Fetch the lines of 128 bytes at these pointers from the device's memory.

    Neither counts nor faults as an access: the addresses may be anywhere. On an H200 the lines come as far as the
    second-level cache, whatever the instruction is called.
    """
    if FAST:
        tl.inline_asm_elementwise(
            "{ prefetch.global.L1 [$1]; mov.b32 $0, 0; }",
            "=r,l",
            [at.to(tl.int64)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def load_fp32(at, ok, FAST: tl.constexpr):
    """Values (fp32 or bf16) at these pointers [32] as fp32, 0 where not ok.

    ``tl.load`` does the same, but with a hundred of them Triton's search for wider loads takes most of the time to
    compile.
    """
    if FAST:
        load: tl.constexpr = _LOAD_HALF if at.dtype.element_ty == tl.bfloat16 else _LOAD
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; " + load + " }",
            "=f,l,r",
            [at.to(tl.int64), ok.to(tl.int32)],
            dtype=tl.float32,
            is_pure=False,
            pack=1,
        )
    else:
        return tl.load(at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def store_fp32(at, x, ok, FAST: tl.constexpr):
    """The opposite of ``load_fp32``."""
    if FAST:
        store: tl.constexpr = _STORE_HALF if at.dtype.element_ty == tl.bfloat16 else _STORE
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $3, 0; " + store + " mov.b32 $0, 0; }",
            "=r,l,f,r",
            [at.to(tl.int64), x, ok.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(at, x.to(at.dtype.element_ty), mask=ok)


@triton.jit
def load_states(ptr, C: tl.constexpr, NB: tl.constexpr, ok, FAST: tl.constexpr):
    """NB rows of states, C apart: NB vectors [32], zeros where not ok. All are on their way before one is needed."""
    out = ()
    for i in tl.static_range(NB):
        out = out + (load_fp32(ptr + i * C, ok, FAST),)
    return out


@triton.jit
def store_states(ptr, C: tl.constexpr, rows, ok, FAST: tl.constexpr):
    """The opposite of ``load_states``."""
    for i in tl.static_range(len(rows)):
        store_fp32(ptr + i * C, rows[i], ok, FAST)


@triton.jit
def _load4(at, ORDERED: tl.constexpr):
    """``ORDERED``: stays before later stores; else the memory must not be written by the kernel."""
    return tl.inline_asm_elementwise(
        "ld.global" + ("" if ORDERED else ".nc") + ".v4.f32 {$0,$1,$2,$3}, [$4];",
        "=f,=f,=f,=f,l",
        [at],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=not ORDERED,
        pack=1,
    )


@triton.jit
def _load8(at):
    """Eight bf16 values, two to a register, each the upper half of an fp32 value."""
    return tl.inline_asm_elementwise(
        "{ .reg .b32 a, b, c, d; ld.global.nc.v4.b32 {a, b, c, d}, [$8]; " + UNPACK + " }",
        "=r,=r,=r,=r,=r,=r,=r,=r,l",
        [at],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )
