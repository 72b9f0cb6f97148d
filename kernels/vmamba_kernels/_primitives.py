"""Device functions shared by the kernels: in-register tiles, softplus, exponentials and the token walk.

Every kernel here is written the way one writes a CUDA thread: one warp per program, one lane per channel
and the tokens of a tile side by side in registers, so that the recurrence is a plain chain of multiply-adds. A tile
is a Python tuple of ``[32]`` vectors; ``unpack16`` and ``pack16`` go between it and the two-dimensional tensors that
``tl.dot`` wants.
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
    """2**x; ``FAST``: one special-function instruction (2 ulp, subnormals flushed), unknown to the interpreter."""
    if FAST:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def log2_1p(e, PRECISE: tl.constexpr):
    """log2(1 + e) for e in [0, 1] as e times a polynomial: relatively exact down to e = 0, no special-function unit.

    Minimax in relative error (Remez): 1.7e-7 with ``PRECISE`` (degree 8, fp32 rounding included), 5.7e-5 without
    (degree 4).
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
def spread16(v, C: tl.constexpr):
    """[16] -> tuple of 16 vectors [C], each filled with one element."""
    return unpack16(tl.broadcast_to(v[:, None], [16, C]))


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
def unpack8(tile):
    """[C, 8] -> tuple of 8 vectors [C], column by column."""
    C: tl.constexpr = tile.shape[0]
    b0 = tl.split(tl.reshape(tile, [C, 4, 2]))
    b1 = ()
    for i in tl.static_range(2):
        b1 = b1 + tl.split(tl.reshape(b0[i], [C, 2, 2]))
    b2 = ()
    for i in tl.static_range(4):
        b2 = b2 + tl.split(b1[i])
    columns = ()
    for t in tl.static_range(8):  # leaf index is t with its three bits reversed
        columns = columns + (b2[(t % 2) * 4 + (t // 2 % 2) * 2 + t // 4],)
    return columns


@triton.jit
def pack8(columns):
    """Tuple of 8 vectors [C] -> [C, 8]; the inverse of ``unpack8``."""
    C: tl.constexpr = columns[0].shape[0]
    b2 = ()
    for i in tl.static_range(4):
        b2 = b2 + (tl.join(columns[i], columns[i + 4]),)
    b1 = ()
    for i in tl.static_range(2):
        b1 = b1 + (tl.join(b2[i], b2[i + 2]),)
    return tl.reshape(tl.join(b1[0], b1[1]), [C, 8])


@triton.jit
def reverse(rows):
    """The tuple, last entry first."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[len(rows) - 1 - i],)
    return out


@triton.jit
def tf32(x, ROUND: tl.constexpr):
    """x rounded to nearest as tf32; the tensor cores themselves would cut it off."""
    if ROUND:
        return tl.inline_asm_elementwise(
            "cvt.rna.tf32.f32 $0, $1;", "=r,f", [x], dtype=tl.int32, is_pure=True, pack=1
        ).to(tl.float32, bitcast=True)
    else:
        return x


@triton.jit
def row_selectors():
    """For r in 0..7, a vector [32] that is 1.0 in lanes 4r .. 4r + 3: the constants of ``lane_sums_step``."""
    lane = tl.arange(0, 32)
    out = ()
    for r in tl.static_range(8):
        out = out + (tl.where(lane // 4 == r, 1.0, 0.0).to(tl.int32, bitcast=True),)
    return out


@triton.jit
def lane_sums_step(sums, select, even, odd, pair: tl.constexpr):
    """Add two tokens' vectors (tokens 2 pair and 2 pair + 1 of a tile) to the tile's running sums over lanes.

    One tf32 tensor-core instruction takes the vectors straight from the registers in which they were computed. As
    its second operand, lane l holds row l % 4 (``even``) and row 4 + l % 4 (``odd``) of column l // 4; the first
    operand has ones where output row 2 pair meets rows 0..3 and where output row 2 pair + 1 meets rows 4..7.
    ``lane_sums`` adds the 8 columns.
    """
    zero = tl.zeros([32], tl.int32)
    if pair < 4:
        a0, a1, a2, a3 = select[2 * pair], zero, select[2 * pair + 1], zero
    else:
        a0, a1, a2, a3 = zero, select[2 * pair - 8], zero, select[2 * pair - 7]
    return _mma(a0, a1, a2, a3, even.to(tl.int32, bitcast=True), odd.to(tl.int32, bitcast=True), sums)


@triton.jit
def _mma(a0, a1, a2, a3, b0, b1, sums):
    """sums + [16, 8] x [8, 8] with tf32 operands, by the lanes' registers."""
    return tl.inline_asm_elementwise(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};",
        "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        [a0, a1, a2, a3, b0, b1, sums[0], sums[1], sums[2], sums[3]],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def lane_sums(sums):
    """The 16 sums over lanes, as a vector [16]."""
    low = tl.sum(tl.reshape(sums[0] + sums[1], [8, 4]), 1)
    high = tl.sum(tl.reshape(sums[2] + sums[3], [8, 4]), 1)
    return tl.reshape(tl.trans(tl.join(low, high)), [16])


@triton.jit
def pair_sums(select, first_r, second_r):
    """Sums over channels of two quantities at each of 8 tokens: vector [32], see ``pair_place``.

    Both are given as 8 vectors [32], last token first. As in ``lane_sums_step``, but here the data is the first
    operand of the product, which takes two tokens at once: a lane's four values are rows l // 4 (``first``) and
    8 + l // 4 (``second``), in columns l % 4 and 4 + l % 4. The second operand has ones in one column for the upper
    four rows and in the next column for the lower four. That leaves sums over 8 rows, in lanes that differ in bits
    2 to 4.
    """
    zero = tl.zeros([32], tl.float32)
    early = (zero, zero, zero, zero)  # two chains of products, each half as long as one
    late = early
    for pair in tl.static_range(2):
        early = _pair_sum(select, first_r, second_r, pair, early)
        late = _pair_sum(select, first_r, second_r, pair + 2, late)
    sums = (early[0] + late[0], early[1] + late[1], early[2] + late[2], early[3] + late[3])
    # a lane has tokens 2 (l % 4) and 2 (l % 4) + 1 of both: each step sends away half of them
    lane = tl.arange(0, 32)
    second = lane // 4 % 2 == 1
    even = tl.where(second, sums[2], sums[0]) + _from_lane(tl.where(second, sums[0], sums[2]), "4")
    odd = tl.where(second, sums[3], sums[1]) + _from_lane(tl.where(second, sums[1], sums[3]), "4")
    later = lane // 8 % 2 == 1
    mine = tl.where(later, odd, even) + _from_lane(tl.where(later, even, odd), "8")
    return mine + _from_lane(mine, "16")


@triton.jit
def _pair_sum(select, first_r, second_r, pair: tl.constexpr, sums):
    return _mma(
        first_r[7 - 2 * pair].to(tl.int32, bitcast=True),
        second_r[7 - 2 * pair].to(tl.int32, bitcast=True),
        first_r[6 - 2 * pair].to(tl.int32, bitcast=True),
        second_r[6 - 2 * pair].to(tl.int32, bitcast=True),
        select[2 * pair],
        select[2 * pair + 1],
        sums,
    )


@triton.jit
def pair_place():
    """Which sum of ``pair_sums`` a lane has, as token + 8 * (1 for the second vector), and whether it is the first."""
    lane = tl.arange(0, 32)
    return lane % 4 * 2 + lane // 8 % 2 + lane // 4 % 2 * 8, lane < 16


@triton.jit
def _from_lane(x, XOR: tl.constexpr):
    """x of the lane whose number differs in the bit ``XOR``."""
    return tl.inline_asm_elementwise(
        "shfl.sync.bfly.b32 $0, $1, " + XOR + ", 0x1f, 0xffffffff;",
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
