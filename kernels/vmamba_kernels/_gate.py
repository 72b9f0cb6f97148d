"""Backward of the gate of a selective scan."""

import torch
import triton
import triton.language as tl

from . import _launch


@triton.jit
def gate_bwd_kernel(dout_ptr, y_ptr, z_ptr, dy_ptr, dz_ptr, size, BLOCK: tl.constexpr):
    """out = y * silu(z): dy and dz, elementwise over contiguous memory."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    dout = tl.load(dout_ptr + at, mask=ok, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + at, mask=ok, other=0.0).to(tl.float32)
    z = tl.load(z_ptr + at, mask=ok, other=0.0).to(tl.float32)
    sig = tl.sigmoid(z)
    tl.store(dy_ptr + at, (dout * z * sig).to(dy_ptr.dtype.element_ty), mask=ok)
    tl.store(dz_ptr + at, (dout * y * sig * (1.0 + z * (1.0 - sig))).to(dz_ptr.dtype.element_ty), mask=ok)


def gate_backward(dout: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients to y (float32 for float16) and z of y * silu(z), [B, D, L] each, in the layout of y."""
    channels_last = y.transpose(1, 2).is_contiguous()
    if channels_last:
        dout, y, z = (t.transpose(1, 2) for t in (dout, y, z))
    dout, y, z = dout.contiguous(), y.contiguous(), z.contiguous()
    dy = _launch.empty(y.shape, dtype=_launch.accumulator_dtype(y.dtype), device=y.device)
    dz = _launch.empty(z.shape, dtype=z.dtype, device=z.device)
    grid = (_launch.cdiv(y.numel(), 1024),)
    _launch.launch(gate_bwd_kernel, grid, dout, y, z, dy, dz, y.numel(), BLOCK=1024, num_warps=4)
    return (dy.transpose(1, 2), dz.transpose(1, 2)) if channels_last else (dy, dz)
