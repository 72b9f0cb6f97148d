"""Device functions shared by the kernels: in-register tiles, softplus, exponentials and the token walk.

Every kernel here is written the way one writes a CUDA thread: one warp per program, one lane per channel (``V`` neighbouring
channels when a lane owns several) and the tokens of a tile side by side in registers, so that the recurrence is a plain chain of
multiply-adds. A tile is a Python tuple of ``[32]`` vectors; ``unpack16`` and ``pack16`` go between it and the two-dimensional
tensors that ``tl.dot`` wants.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# order codes, shared by host and device
UNI = tl.constexpr(0)
BIDI = tl.constexpr(1)
CROSS = tl.constexpr(2)
TABLE = tl.constexpr(3)


@triton.jit
def ex2(x, FAST: tl.constexpr):
    """2**x. ``FAST`` is one special-function instruction (2 ulp, subnormals flushed); the interpreter has no inline asm."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def log2_1p(e, PRECISE: tl.constexpr):
    """log2(1 + e) for e in [0, 1], as e times a polynomial: relative accuracy down to e = 0, and no special-function unit.

    Minimax in relative error (Remez): 1.7e-7 with ``PRECISE`` (degree 8, fp32 rounding included), 5.7e-5 without (degree 4).
    """
    if PRECISE:
        p = e * 0.007549182046204805 - 0.04256706312298775
        p = p * e + 0.1128561943769455
        p = p * e - 0.19711896777153015
        p = p * e + 0.27564141154289246
        p = p * e - 0.35840848088264465
        p = p * e + 0.48069295287132263
        p = p * e - 0.7213401794433594
        p = p * e + 1.4426950216293335
    else:
        p = e * 0.05965154990553856 - 0.22711944580078125
        p = p * e + 0.44189882278442383
        p = p * e - 0.7169874310493469
        p = p * e + 1.4426132440567017
    return p * e


@triton.jit
def softplus2(z2, FAST: tl.constexpr, PRECISE: tl.constexpr):
    """log2(1 + 2**z2): softplus with argument and result in units of log 2. Never overflows."""
    return tl.maximum(z2, 0.0) + log2_1p(ex2(-tl.abs(z2), FAST), PRECISE)


@triton.jit
def unpack16(tile):
    """[16, C] -> tuple of 16 vectors [C], row by row."""
    C: tl.constexpr = tile.shape[1]
    u = tl.reshape(tl.trans(tile), [C, 8, 2])
    b0 = tl.split(u)
    b1 = ()
    for i in tl.static_range(2):
        b1 = b1 + tl.split(tl.reshape(b0[i], [C, 4, 2]))
    b2 = ()
    for i in tl.static_range(4):
        b2 = b2 + tl.split(tl.reshape(b1[i], [C, 2, 2]))
    b3 = ()
    for i in tl.static_range(8):
        b3 = b3 + tl.split(b2[i])
    rows = ()
    for t in tl.static_range(16):  # leaf index is t with its four bits reversed
        rows = rows + (b3[(t % 2) * 8 + (t // 2 % 2) * 4 + (t // 4 % 2) * 2 + t // 8],)
    return rows


@triton.jit
def pack16(rows):
    """Tuple of 16 vectors [C] -> [C, 16], the transpose of the tile that ``unpack16`` takes."""
    C: tl.constexpr = rows[0].shape[0]
    b3 = ()
    for i in tl.static_range(8):
        b3 = b3 + (tl.join(rows[i], rows[i + 8]),)  # [C, 2], last axis is bit 3
    b2 = ()
    for i in tl.static_range(4):
        b2 = b2 + (tl.join(b3[i], b3[i + 4]),)  # [C, bit3, bit2]
    b1 = ()
    for i in tl.static_range(2):
        b1 = b1 + (tl.join(b2[i], b2[i + 2]),)
    b0 = tl.join(b1[0], b1[1])  # [C, bit3, bit2, bit1, bit0]
    return tl.reshape(b0, [C, 16])


@triton.jit
def split_lanes(v, V: tl.constexpr):
    """[32 * V] -> tuple of V vectors [32]; lane i of part s holds element i * V + s."""
    if V == 1:
        return (v,)
    elif V == 2:
        return tl.split(tl.reshape(v, [32, 2]))
    else:
        lo, hi = tl.split(tl.reshape(v, [32, 2, 2]))
        a, c = tl.split(lo)
        b, d = tl.split(hi)
        return (a, b, c, d)


@triton.jit
def join_lanes(parts, V: tl.constexpr):
    """Inverse of ``split_lanes``."""
    if V == 1:
        return parts[0]
    elif V == 2:
        return tl.reshape(tl.join(parts[0], parts[1]), [64])
    else:
        return tl.reshape(tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3])), [128])
