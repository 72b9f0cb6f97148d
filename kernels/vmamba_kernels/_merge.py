"""Sum over the scan directions."""

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
    if K == 1:
        return parts.squeeze(1).to(dtype)
    out = _launch.empty((B, L, D), dtype=dtype, device=parts.device)
    block = 1024 if not _launch.interpreted() else _launch.pow2(min(L * D, 4096), 1)
    if out.numel():
        _launch.launch(
            merge_kernel, (B * _launch.cdiv(L * D, block),), parts, out, L * D, K=K, BLOCK=block, num_warps=4
        )
    return out
