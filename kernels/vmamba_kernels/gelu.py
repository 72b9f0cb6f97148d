"""Backward of GELU that also gives the activation again, so that it need not be kept."""

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import check_device, check_shape


@triton.jit
def gelu_bwd_kernel(dy_ptr, x_ptr, y_ptr, dx_ptr, size, BLOCK: tl.constexpr):
    """y = x * Phi(x) and dx, elementwise over contiguous memory."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + at, mask=ok, other=0.0).to(tl.float32)
    cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    tl.store(y_ptr + at, (x * cdf).to(y_ptr.dtype.element_ty), mask=ok)
    tl.store(dx_ptr + at, (dy * (cdf + x * density)).to(dx_ptr.dtype.element_ty), mask=ok)


def gelu_backward(dy: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU (Hendrycks and Gimpel 2016, the exact form) of x and the gradient to x, both in x's shape and dtype.

    Raises:
        ValueError: dy has another shape or device than x.
    """
    check_device(dy=dy, x=x)
    check_shape("dy", dy, tuple(x.shape), "that of x")
    dy, x = dy.contiguous(), x.contiguous()
    y = _launch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    dx = _launch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    if x.numel():
        grid = (_launch.cdiv(x.numel(), 2048),)
        _launch.launch(gelu_bwd_kernel, grid, dy, x, y, dx, x.numel(), BLOCK=2048, num_warps=8)
    return y, dx
