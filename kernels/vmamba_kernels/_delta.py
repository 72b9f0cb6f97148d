"""Delta from its rank-R factors: a small matrix product per tile of 16 tokens, on the tensor cores, to fp32 accuracy.

The weight is fp32. With half-precision factors it is split into two halves (``w = hi + lo``), so that two half-precision products
carry 16 (bfloat16) or 22 (float16) bits of it; with fp32 factors the product is done in three tf32 passes.
"""

import triton
import triton.language as tl

from ._primitives import LOG2E, unpack16


@triton.jit
def load_weight(dt_weight, d, r, d_ok, R: tl.constexpr, dtype: tl.constexpr):
    """High and low part of ``dt_weight[d, r] * log2(e)``; d and r broadcast against each other. Low is unused for fp32."""
    w = tl.load(dt_weight + d * R + r, mask=d_ok & (r < R), other=0.0) * LOG2E
    hi = w.to(dtype)
    return hi, (w - hi.to(tl.float32)).to(dtype)


@triton.jit
def project(factors, hi, lo, bias, FAST: tl.constexpr):
    """[16, KR] x [KR, 32] + bias [16, 32] in fp32."""
    if not FAST:  # the interpreter's product of bfloat16 operands is wrong; products of their fp32 values are the same
        factors, hi, lo = factors.to(tl.float32), hi.to(tl.float32), lo.to(tl.float32)
        return tl.dot(factors, lo, tl.dot(factors, hi, bias, input_precision="ieee"), input_precision="ieee")
    if factors.dtype == tl.float32:
        return tl.dot(factors, hi, bias, input_precision="tf32x3")
    else:
        return tl.dot(factors, lo, tl.dot(factors, hi, bias))


@triton.jit
def tile_delta(
    proj_base, p, ok_t, w_hi, w_lo, bias, R: tl.constexpr, KR: tl.constexpr, ROW: tl.constexpr, HAS_C: tl.constexpr,
    SUB: tl.constexpr, FULL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """Factors [16, KR], pre-activations of delta in units of log 2 (SUB x 16 vectors [32]) and B, C [16, 2] at 16 positions.

    The factors' columns from R on hold what follows in memory; the weight is zero there.
    """
    P: tl.constexpr = R + 1 + HAS_C
    r = tl.arange(0, KR)
    two = tl.arange(0, 2)
    row = (proj_base + p.to(tl.int64) * ROW)[:, None]
    if FULL:
        factors = tl.load(row + r[None, :], mask=(r < P)[None, :], other=0.0)
        bc = tl.load(row + R + two[None, :], mask=(two < 1 + HAS_C)[None, :], other=0.0)
    else:
        factors = tl.load(row + r[None, :], mask=ok_t[:, None] & (r < P)[None, :], other=0.0)
        bc = tl.load(row + R + two[None, :], mask=ok_t[:, None] & (two < 1 + HAS_C)[None, :], other=0.0)
    z2 = ()
    for s in tl.static_range(SUB):
        bias_tile = tl.zeros([16, 32], tl.float32) + bias[s][None, :]
        z2 = z2 + (unpack16(project(factors, w_hi[s], w_lo[s], bias_tile, FAST)),)
    return factors, z2, bc
