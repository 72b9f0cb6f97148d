"""Sums of the scan kernels' partial results: over directions, and over channel blocks."""

import torch
import triton
import triton.language as tl

from . import _launch


@triton.jit
def merge_kernel(parts_ptr, out_ptr, size, K: tl.constexpr, BLOCK: tl.constexpr):
    """out[b] = sum_k parts[b, k] over planes of ``size`` elements; program (plane block, b)."""
    blocks = tl.cdiv(size, BLOCK)
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    at = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    acc = tl.zeros([BLOCK], tl.float32)
    for k in tl.static_range(K):
        acc += tl.load(parts_ptr + (b * K + k) * size + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(out_ptr + b * size + at, acc.to(out_ptr.dtype.element_ty), mask=ok)


def merge_directions(parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sum of ``parts`` [B, K, L, D] (contiguous) over K, accumulated in fp32, as [B, L, D] in ``dtype``."""
    B, K, L, D = parts.shape
    out = _launch.empty((B, L, D), dtype=dtype, device=parts.device)
    block = 1024 if not _launch.interpreted() else triton.next_power_of_2(min(L * D, 4096))
    if out.numel():
        merge_kernel[(B * triton.cdiv(L * D, block),)](parts, out, L * D, K=K, BLOCK=block, num_warps=4)
    return out


@triton.jit
def dproj_kernel(
    parts_ptr,  # [blocks, rows, P], or [blocks, rows, P - R] with FACTORS
    factors_ptr,  # [K, rows / K, R], only with FACTORS
    out_ptr,  # [rows, P], rows = B * L * K
    rows,
    blocks,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of the partial gradients to proj over channel blocks, with the factors' columns from elsewhere if FACTORS."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < rows * P
    acc = tl.zeros([BLOCK], tl.float32)
    if FACTORS:
        row = at // P
        c = at % P
        is_factor = c < R
        bc_at = row * (P - R) + c - R
        for block in range(0, blocks):
            part = parts_ptr + tl.cast(block, tl.int64) * rows * (P - R)
            acc += tl.load(part + bc_at, mask=ok & (c >= R), other=0.0)
        f_at = ((row % K) * (rows // K) + row // K) * R + c
        acc += tl.load(factors_ptr + f_at, mask=ok & is_factor, other=0.0).to(tl.float32)
    else:
        for block in range(0, blocks):
            acc += tl.load(parts_ptr + tl.cast(block, tl.int64) * rows * P + at, mask=ok, other=0.0)
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=ok)


def sum_dproj(parts: torch.Tensor, factors: torch.Tensor | None, like: torch.Tensor, R: int) -> torch.Tensor:
    """Gradient to proj, shaped and typed like ``like`` [B, L, K, P].

    Args:
        parts: [blocks, B, L, K, P] fp32 partial sums; [blocks, B, L, K, P - R] when ``factors`` is given.
        factors: [K, B * L, R] gradient to the delta factors, or None.
        like: proj.
        R: number of delta factors.
    """
    B, L, K, P = like.shape
    out = _launch.empty(like.shape, dtype=like.dtype, device=like.device)
    rows = B * L * K
    block = 1024
    if out.numel():
        dproj_kernel[(triton.cdiv(rows * P, block),)](
            parts, factors, out, rows, parts.shape[0], K=K, R=R, P=P, FACTORS=factors is not None, BLOCK=block,
            num_warps=4,
        )  # fmt: skip
    return out
