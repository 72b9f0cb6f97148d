"""The order in which a direction visits the tokens, as index arithmetic on a forward walk ``q`` and a mirror.

A direction visits natural position ``off + sign * q``, where ``q`` walks forward from 0: by 1 (row-major) or by ``width`` with a
wrap at the end of a column (column-major); a reversed direction mirrors it. ``q`` stays inside [0, L) also past the end of the
sequence, so that loads of a last, incomplete tile need no mask. A table direction reads its positions from memory.
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
def walk_at(j, step, L, height, ORDER: tl.constexpr):
    """Forward walk position of visit j (scalar or tensor); j may run past L - 1 and is then clamped."""
    j = tl.minimum(j, L - 1)
    if ORDER == CROSS:
        return tl.where(step == 1, j, (j % height) * step + j // height)
    else:
        return j


@triton.jit
def tile_positions(j, index_ptr, L_visits, step, off, sign, L, height, ORDER: tl.constexpr):
    """Natural positions (always valid) of the visits j, and which of them are tokens."""
    if ORDER == TABLE:
        q = tl.load(index_ptr + j, mask=j < L_visits, other=-1)
        ok = q >= 0
        p = tl.maximum(q, 0)
    else:
        ok = j < L_visits
        p = off + sign * walk_at(j, step, L, height, ORDER)
    return p, ok
