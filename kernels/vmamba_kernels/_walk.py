"""The order in which a direction visits the tokens, as index arithmetic.

A closed-form direction walks row-major or column-major, and a mirrored one visits L - 1 - p where the other visits p.
Positions stay inside [0, L) also past the end of the sequence, so that loads of a last, incomplete tile need no mask.
A table direction reads its positions from memory.
"""

import triton
import triton.language as tl

from ._primitives import BIDI, CROSS, TABLE


@triton.jit
def direction(k, K: tl.constexpr, L, width, ORDER: tl.constexpr):
    """Step of the forward walk, and whether the direction is mirrored (0 or 1)."""
    if ORDER == CROSS:
        step = tl.where(k % 2 == 1, width, 1)
        mirror = tl.where(k >= 2, 1, 0)
    elif ORDER == BIDI:
        step = 1
        mirror = tl.where(k >= K // 2, 1, 0)
    else:
        step = 1
        mirror = 0
    return step, mirror


@triton.jit
def tile_positions(j, index_ptr, L_visits, step, mirror, L, height, reciprocal, ORDER: tl.constexpr):
    """Natural positions (always valid) of the visits j, and which of them are tokens.

    ``reciprocal`` is ceil(2**32 / height): j // height is the high half of one product, exact while L * height < 2**32.
    """
    if ORDER == TABLE:
        q = tl.load(index_ptr + j, mask=j < L_visits, other=-1)
        ok = q >= 0
        p = tl.maximum(q, 0)
    else:
        ok = j < L_visits
        p = tl.minimum(j, L - 1)
        if ORDER == CROSS:
            column = tl.umulhi(p.to(tl.uint32), reciprocal.to(tl.uint32)).to(tl.int32)
            p = tl.where(step == 1, p, (p - column * height) * step + column)
        p = tl.where(mirror == 1, L - 1 - p, p)
    return p, ok
