"""Splitting a long sequence when images and channels alone cannot fill the device.

The visits of a direction are cut into segments. A first pass finds what each segment does to a state that enters it
(``end + decay * state``); a chain over the segments gives every segment's entry; then all segments run at once in the
ordinary kernels. The same works backwards for the adjoint.
"""

import torch
import triton
import triton.language as tl

from . import _launch
from ._delta import load_weights, tile_delta, tile_factors
from ._launch import fast_math
from ._primitives import LN2, LOG2E, TABLE, ex2, pack16, reverse, softplus2, spread16, unpack16
from ._walk import direction, tile_positions


@triton.jit(do_not_specialize=["L", "L_visits", "height", "width", "reciprocal", "segments", "span"])
def ss2d_segment_kernel(
    in_ptr,  # forward: x [B, L, D]; adjoint: dy [B, L, D] or [B, K, L, D]; strides (in_sb, in_sk, IN_ROW, 1)
    proj_ptr,  # [B, L, K, P], contiguous
    dt_weight_ptr,  # [K, D, R]
    dt_bias_ptr,  # [K, D]
    a_log_ptr,  # [K, D]
    end_ptr,  # [B, K, segments, D]: what a segment makes of a zero state
    delta_ptr,  # [B, K, segments, D]: sum of delta, in units of log 2
    index_ptr,
    in_sb,
    in_sk,
    L,
    L_visits,
    height,
    width,
    reciprocal,
    segments,
    span,  # tiles per segment
    IN_ROW: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    ORDER: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADJOINT: tl.constexpr,
    PRECISE: tl.constexpr,
    FAST: tl.constexpr,
):
    """End state (or, backwards, the adjoint carry) of one segment begun at zero."""
    BLOCKS: tl.constexpr = (D + 31) // 32
    P: tl.constexpr = R + 1 + HAS_C
    PADDED: tl.constexpr = ORDER == TABLE
    pid = tl.program_id(0)
    k = pid % K
    block = pid // K % BLOCKS
    segment = pid // (K * BLOCKS) % segments
    b = (pid // (K * BLOCKS * segments)).to(tl.int64)

    step, mirror = direction(k, K, L, width, ORDER)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < D
    first = segment * span
    count = tl.minimum(span, tl.cdiv(L_visits, 16) - first)
    walk = index_ptr
    if ORDER == TABLE:
        walk = index_ptr + k * L_visits
    a_nat = -ex2(tl.load(a_log_ptr + k * D + d, mask=d_ok, other=0.0) * LOG2E, FAST)
    bias = tl.zeros([32], tl.float32)
    if HAS_BIAS:
        bias = tl.load(dt_bias_ptr + k * D + d, mask=d_ok, other=0.0) * LOG2E
    weights = load_weights(dt_weight_ptr + k * D * R, d, d_ok, R, proj_ptr.dtype.element_ty)
    in_base = in_ptr + b * in_sb + k.to(tl.int64) * in_sk + d[None, :]
    proj_base = proj_ptr + b * L * (K * P) + k * P

    h = tl.zeros([32], tl.float32)
    total = tl.zeros([32], tl.float32)
    tile_t = tl.arange(0, 16)
    for i in tl.range(0, count, num_stages=3):
        tile = first + i
        if ADJOINT:
            tile = first + count - 1 - i
        p, ok_t = tile_positions(tile * 16 + tile_t, walk, L_visits, step, mirror, L, height, reciprocal, ORDER)
        factors, bc = tile_factors(proj_base, p, ok_t, R, K * P, HAS_C, PADDED)
        z2 = tile_delta(factors, (weights,), (bias,), 1, FAST)
        at = in_base + p[:, None].to(tl.int64) * IN_ROW
        inputs = unpack16(tl.load(at, mask=ok_t[:, None] & d_ok[None, :], other=0.0))
        b_t, c_t = tl.split(bc.to(tl.float32))
        if ADJOINT:
            scale = spread16(c_t, 32)
        else:
            scale = spread16(b_t * LN2, 32)
        z = z2[0]
        if ADJOINT:  # last visit first
            z = reverse(z)
            inputs = reverse(inputs)
            scale = reverse(scale)
        for t in tl.static_range(16):
            visit = tile * 16 + (15 - t if ADJOINT else t)
            delta2 = tl.where(visit < L_visits, softplus2(z[t], FAST, PRECISE), 0.0)
            decay = ex2(a_nat * delta2, FAST)
            value = inputs[t].to(tl.float32)
            if ADJOINT:
                if HAS_C:
                    value = scale[t] * value
                h = decay * (value + h)
            else:
                h = decay * h + scale[t] * (delta2 * value)
            total += delta2
    out = ((b * K + k) * segments + segment) * D + d
    tl.store(end_ptr + out, h, mask=d_ok)
    tl.store(delta_ptr + out, total, mask=d_ok)


@triton.jit(do_not_specialize=["segments"])
def ss2d_chain_kernel(
    end_ptr, delta_ptr, a_log_ptr, entry_ptr, segments, D: tl.constexpr, K: tl.constexpr, ADJOINT: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """entry[s + 1] = end[s] + exp(A * delta[s]) * entry[s] along [B, K, segments, D]; the adjoint backwards."""
    BLOCKS: tl.constexpr = (D + 31) // 32
    pid = tl.program_id(0)
    block = pid % BLOCKS
    bk = (pid // BLOCKS).to(tl.int64)
    d = block * 32 + tl.arange(0, 32)
    d_ok = d < D
    a_nat = -ex2(tl.load(a_log_ptr + bk % K * D + d, mask=d_ok, other=0.0) * LOG2E, FAST)
    h = tl.zeros([32], tl.float32)
    row = tl.arange(0, 16)
    for i in tl.range(0, tl.cdiv(segments, 16), num_stages=2):
        s = i * 16 + row
        at = bk * segments * D + tl.where(ADJOINT, segments - 1 - s, s)[:, None] * D + d[None, :]
        ok = (s < segments)[:, None] & d_ok[None, :]
        ends = unpack16(tl.load(end_ptr + at, mask=ok, other=0.0))
        deltas = unpack16(tl.load(delta_ptr + at, mask=ok, other=0.0))
        entries = ()
        for t in tl.static_range(16):
            entries = entries + (h,)
            h = ends[t] + ex2(a_nat * deltas[t], FAST) * h
        tl.store(entry_ptr + at, tl.trans(pack16(entries)), mask=ok)


def segment_entries(
    inputs: torch.Tensor, proj: torch.Tensor, dt_weight, dt_bias, A_log, index, p, segments: int, span: int,
    *, adjoint: bool,
) -> torch.Tensor:  # fmt: skip
    """State (or adjoint carry) [B, K, segments, D] with which each segment begins; ``p`` is the checked problem."""
    shape = (p.B, p.K, segments, p.D)
    end, delta, entry = (_launch.empty(shape, dtype=torch.float32, device=proj.device) for _ in range(3))
    blocks = -(-p.D // 32)
    ss2d_segment_kernel[(p.B * segments * blocks * p.K,)](
        inputs, proj, dt_weight, dt_bias, A_log, end, delta, index,
        inputs.stride(0), inputs.stride(1) if inputs.dim() == 4 else 0, p.L, p.visits, p.height, p.width,
        -(-(2**32) // p.height), segments, span,
        IN_ROW=inputs.stride(-2), D=p.D, K=p.K, R=p.R, ORDER=p.order, HAS_C=p.has_c, HAS_BIAS=dt_bias is not None,
        ADJOINT=adjoint, PRECISE=p.precise, FAST=fast_math(), num_warps=1,
    )  # fmt: skip
    ss2d_chain_kernel[(p.B * p.K * blocks,)](
        end, delta, A_log, entry, segments, D=p.D, K=p.K, ADJOINT=adjoint, FAST=fast_math(), num_warps=1
    )
    return entry
