"""Delta from its rank-R factors: a small matrix product per tile of 16 tokens, on the tensor cores, to fp32 accuracy.

The weight is fp32. With half-precision factors it is split into two halves (``w = hi + lo``), so that two half-
precision products carry 16 (bfloat16) or 22 (float16) bits of it; with fp32 factors the product is done in three tf32
passes.
"""

import triton
import triton.language as tl

from ._primitives import LOG2E, unpack16


@triton.jit
def load_weight(dt_weight, d, r, d_ok, R: tl.constexpr, dtype: tl.constexpr):
    """High and low part of ``dt_weight[d, r] * log2(e)``; d and r broadcast. Low is unused for fp32."""
    w = tl.load(dt_weight + d * R + r, mask=d_ok & (r < R), other=0.0) * LOG2E
    hi = w.to(dtype)
    return hi, (w - hi.to(tl.float32)).to(dtype)


@triton.jit
def product(a, b, acc, FAST: tl.constexpr):
    """acc + a b, in fp32 for fp32 operands."""
    if not FAST:  # the interpreter's product of bfloat16 operands is wrong; that of their fp32 values is the same
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    if a.dtype == tl.float32:
        return tl.dot(a, b, acc, input_precision="tf32x3")
    else:
        return tl.dot(a, b, acc)


@triton.jit
def load_weights(dt_weight, d, d_ok, R: tl.constexpr, dtype: tl.constexpr):
    """``load_weight`` for the channels d, [16, 32] each, in chunks of 16 factors: a tuple of (high, low)."""
    r = tl.arange(0, 16)
    out = ()
    for chunk in tl.static_range((R + 15) // 16):
        out = out + (load_weight(dt_weight, d[None, :], r[:, None] + 16 * chunk, d_ok[None, :], R, dtype),)
    return out


@triton.jit
def tile_factors(
    proj_base, p, ok_t, R: tl.constexpr, ROW: tl.constexpr, HAS_C: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """Delta's factors at 16 positions, in chunks [16, 16], and B and C [16, 2].

    The factors' columns from R on may hold B and C; the weight is zero there. Only padding slots are masked: past the
    end of the sequence the positions are valid, and what is computed there goes nowhere.
    """
    P: tl.constexpr = R + 1 + HAS_C
    r = tl.arange(0, 16)
    two = tl.arange(0, 2)
    row = (proj_base + p.to(tl.int64) * ROW)[:, None]
    if PADDED:
        bc = tl.load(row + R + two[None, :], mask=ok_t[:, None] & (two < 1 + HAS_C)[None, :], other=0.0)
    elif HAS_C:
        bc = tl.load(row + R + two[None, :])
    else:
        bc = tl.load(row + R + two[None, :], mask=(two < 1)[None, :], other=0.0)
    factors = ()
    for chunk in tl.static_range((R + 15) // 16):
        c = r + 16 * chunk
        if PADDED:
            tile = tl.load(row + c[None, :], mask=ok_t[:, None] & (c < P)[None, :], other=0.0)
        elif 16 * chunk + 16 <= P:
            tile = tl.load(row + c[None, :])
        else:
            tile = tl.load(row + c[None, :], mask=(c < P)[None, :], other=0.0)
        factors = factors + (tile,)
    return factors, bc


@triton.jit
def tile_delta(factors, weights, biases, SUB: tl.constexpr, FAST: tl.constexpr):
    """Delta's pre-activations in units of log 2 at 16 positions: for each of SUB channel blocks 16 vectors [32]."""
    z2 = ()
    for s in tl.static_range(SUB):
        z = tl.zeros([16, 32], tl.float32) + biases[s][None, :]
        for chunk in tl.static_range(len(factors)):
            z = product(factors[chunk], weights[s][chunk][0], z, FAST)
            if factors[chunk].dtype != tl.float32:
                z = product(factors[chunk], weights[s][chunk][1], z, FAST)
        z2 = z2 + (unpack16(z),)
    return z2
