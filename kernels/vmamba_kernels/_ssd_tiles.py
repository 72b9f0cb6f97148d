"""What the kernels of the Mamba-2 scan share: step sizes and decays of a tile, products, and the place of a program."""

import triton
import triton.language as tl

from ._primitives import LN2, log2_1p, tf32


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, FAST: tl.constexpr):
    """Product of two tiles, summed in float32, with operands of float32, tf32 or bfloat16."""
    if PRECISION == "bf16":
        low, high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if FAST:
            return tl.dot(low, high)
        else:  # the interpreter has no such product
            return tl.dot(low.to(tl.float32), high.to(tl.float32))
    elif PRECISION == "tf32":
        return tl.dot(tf32(a.to(tl.float32), FAST), tf32(b.to(tl.float32), FAST), input_precision="tf32")
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")


@triton.jit
def load_tile(ptr, at, stride, valid, column, WIDTH: tl.constexpr):
    """Rows of tokens ``at`` of a matrix whose rows are ``stride`` apart, [T, C]; zero outside."""
    offset = at.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(ptr + offset, mask=valid[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def load_steps(dt_ptr, at, stride, valid, bias, SOFTPLUS: tl.constexpr):
    """Step sizes of a tile, [T] fp32, zero outside; and their slope to what they are made of."""
    z = tl.load(dt_ptr + at.to(tl.int64) * stride, mask=valid, other=0.0).to(tl.float32) + bias
    if SOFTPLUS:
        e = tl.exp(-tl.abs(z))
        step = tl.maximum(z, 0.0) + LN2 * log2_1p(e, True)
        slope = tl.where(z > 0, 1.0, e) / (1.0 + e)
    else:
        step = z
        slope = z * 0.0 + 1.0
    return tl.where(valid, step, 0.0), slope


@triton.jit
def load_bias(bias_ptr, h, GIVEN: tl.constexpr):
    """The head's addition to the step sizes."""
    if GIVEN:
        return tl.load(bias_ptr + h).to(tl.float32)
    else:
        return 0.0


@triton.jit
def logarithms(step, rate, T: tl.constexpr):
    """Logarithm of the decay up to each step of a tile, [T], and of the whole tile: the last of them, bit for bit."""
    total = tl.cumsum(step * rate, 0)
    return total, tl.sum(tl.where(tl.arange(0, T) == T - 1, total, 0.0), 0)


@triton.jit
def decays(total, T: tl.constexpr):
    """Decay from the end of step s to that of step t, [t, s], from sums of logarithms; 0 where t < s."""
    t = tl.arange(0, T)
    later = t[:, None] >= t[None, :]
    return tl.where(later, tl.exp(tl.where(later, total[:, None] - total[None, :], 0.0)), 0.0)


@triton.jit
def state_offsets(p, n, P: tl.constexpr, N: tl.constexpr):
    """Offsets within a state [P, N], and which of the tile [BP, BN] are in it."""
    return p[:, None] * N + n[None, :], (p < P)[:, None] & (n < N)[None, :]
