"""Backward of GELU that also gives the activation again, so that it need not be kept, and the gradient to a bias."""

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import check_device, check_shape
from ._sums import COLUMNS, ROWS, Split, Sums, over_rows


@triton.jit(do_not_specialize=["rows", "per_program"])
def gelu_bwd_kernel(
    dy_ptr,  # [rows, C], contiguous, as are all but the last
    x_ptr,
    y_ptr,
    dx_ptr,
    dbias_ptr,  # [programs, C] fp32
    rows,
    per_program,  # blocks of ROWS rows that one program does
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y = x * Phi(x), dx, and sums of dx over rows; program = several blocks of rows in a block of columns."""
    blocks = tl.cdiv(C, COLUMNS)
    pid = tl.program_id(0)
    c = pid % blocks * COLUMNS + tl.arange(0, COLUMNS)
    part = pid // blocks
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(per_program):
        row = (part * per_program + i) * ROWS + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None] * C + c[None, :]
        ok = (row < rows)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + at, mask=ok, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=ok, other=0.0).to(tl.float32)
        cdf = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        dx = dy * (cdf + x * density)
        tl.store(y_ptr + at, (x * cdf).to(y_ptr.dtype.element_ty), mask=ok)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=ok)
        total += dx
    tl.store(dbias_ptr + part.to(tl.int64) * C + c, tl.sum(total, 0), mask=c < C)


def gelu_backward(
    dy: torch.Tensor, x: torch.Tensor, sums: Sums | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GELU (Hendrycks and Gimpel 2016, the exact form) of x, the gradient to x, and the sum of that over rows.

    Args:
        dy: [rows, C], gradient to the activation; float16, bfloat16 or float32.
        x: [rows, C].
        sums: run by the caller, who then has the sum; None: it is found at once.

    Returns:
        Activation and gradient, [rows, C] in the dtype of x, and the sum [C] in float32, the gradient to a bias that
        was added to make x. Deterministic.

    Raises:
        ValueError: x is no matrix, or dy has another shape or device than x.
    """
    check_device(dy=dy, x=x)
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (rows, C)")
    check_shape("dy", dy, tuple(x.shape), "that of x")
    dy, x = dy.contiguous(), x.contiguous()
    rows, channels = x.shape
    y, dx = _launch.empty_like(x), _launch.empty_like(x)
    if not x.numel():
        return y, dx, x.new_zeros(channels, dtype=torch.float32)
    split = Split.of(rows, channels)
    parts = _launch.empty((split.parts, channels), dtype=torch.float32, device=x.device)
    _launch.launch(
        gelu_bwd_kernel, (split.parts * split.blocks,), dy, x, y, dx, parts, rows, split.per_program, C=channels,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return y, dx, over_rows(parts, sums)
