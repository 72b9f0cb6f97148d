"""Depthwise 3x3 convolution of a channels-last map, with SiLU or a shortcut, in one pass, and its gradients.

Library kernels for depthwise convolutions are made for channels-first maps and fall far behind the memory's speed on
channels-last ones. Here a program walks down a strip of the map with three rows in registers, so that every row is
loaded once per strip and column shift; what the convolution gives before its activation is never written. A shortcut
is one more at the tap in the middle.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import check_device, check_shape, rows_contiguous
from ._sums import Sums, over_rows

_COLUMNS = 8  # of the map per program
_PROGRAMS = 2048  # enough to fill a large GPU


class DepthwiseConvGradients(NamedTuple):
    """What the backward functions return; ``bias`` is None where the input was."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


@triton.jit
def place(H, W, strips, rows, C: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Of this program: image, its first and last row + 1, columns [COLUMNS], channels [BLOCK]."""
    pid = tl.program_id(0)
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    across = tl.cdiv(W, COLUMNS)
    d = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    w = pid // BLOCKS % across * COLUMNS + tl.arange(0, COLUMNS)
    strip = pid // (BLOCKS * across) % strips
    b = (pid // (BLOCKS * across * strips)).to(tl.int64)
    return b, strip * rows, tl.minimum((strip + 1) * rows, H), w, d


@triton.jit
def load_row(ptr, h, w, H, W, stride, d, C: tl.constexpr):
    """The row's tokens at the columns before w, at w and after w: three tiles [COLUMNS, BLOCK], zero outside."""
    out = ()
    for j in tl.static_range(3):
        at = w + (j - 1)
        ok = (at >= 0) & (at < W) & (h >= 0) & (h < H)
        token = (h * W + at).to(tl.int64) * stride
        out = out + (tl.load(ptr + token[:, None] + d[None, :], mask=ok[:, None] & (d < C)[None, :], other=0.0),)
    return out


@triton.jit
def load_taps(weight_ptr, d, C: tl.constexpr, FLIP: tl.constexpr, SHORTCUT: tl.constexpr):
    """The kernel's nine taps, row by row, [BLOCK] fp32 each; back to front with FLIP."""
    out = ()
    for i in tl.static_range(9):
        tap = tl.load(weight_ptr + d * 9 + (8 - i if FLIP else i), mask=d < C, other=0.0).to(tl.float32)
        out = out + (tap + 1.0 if SHORTCUT and i == 4 else tap,)
    return out


@triton.jit
def convolve(above, here, below, taps, bias):
    """One row of the convolution, fp32 [COLUMNS, BLOCK]."""
    acc = bias[None, :] + above[0].to(tl.float32) * taps[0][None, :]
    for j in tl.static_range(1, 3):
        acc += above[j].to(tl.float32) * taps[j][None, :]
    for j in tl.static_range(3):
        acc += here[j].to(tl.float32) * taps[3 + j][None, :]
    for j in tl.static_range(3):
        acc += below[j].to(tl.float32) * taps[6 + j][None, :]
    return acc


@triton.jit
def load_bias(bias_ptr, d, C: tl.constexpr, BLOCK: tl.constexpr, GIVEN: tl.constexpr):
    """Shift of the channels, [BLOCK] fp32; zeros where not given."""
    if GIVEN:
        return tl.load(bias_ptr + d, mask=d < C, other=0.0).to(tl.float32)
    else:
        return tl.zeros([BLOCK], tl.float32)


@triton.jit(do_not_specialize=["H", "W", "strips", "rows"])
def conv_kernel(
    x_ptr,  # [B, H, W, C], strides (x_sb, W * x_st, x_st, 1)
    weight_ptr,  # [C, 9]
    bias_ptr,  # [C]
    y_ptr,  # [B, H, W, C], contiguous
    x_sb,
    x_st,
    H,
    W,
    strips,  # that a map is cut into
    rows,  # of the map per strip
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    FLIP: tl.constexpr,  # the gradient to the input is the convolution with the kernel turned by 180 degrees
    SHORTCUT: tl.constexpr,
):
    """Convolution and activation of a strip of a few columns."""
    b, h, end, w, d = place(H, W, strips, rows, C, COLUMNS, BLOCK)
    x_ptr += b * x_sb
    y_ptr += b * H * W * C
    taps = load_taps(weight_ptr, d, C, FLIP, SHORTCUT)
    bias = load_bias(bias_ptr, d, C, BLOCK, HAS_BIAS)
    ok = (w < W)[:, None] & (d < C)[None, :]
    above = load_row(x_ptr, h - 1, w, H, W, x_st, d, C)
    here = load_row(x_ptr, h, w, H, W, x_st, d, C)
    below = load_row(x_ptr, h + 1, w, H, W, x_st, d, C)
    for row in range(h, end):
        ahead = load_row(x_ptr, row + 2, w, H, W, x_st, d, C)
        y = convolve(above, here, below, taps, bias)
        if SILU:
            y = y * tl.sigmoid(y)
        at = (row * W + w).to(tl.int64)[:, None] * C + d[None, :]
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=ok)
        above = here
        here = below
        below = ahead


@triton.jit(do_not_specialize=["H", "W", "strips", "rows"])
def conv_bwd_kernel(
    dy_ptr,  # [B, H, W, C], contiguous
    x_ptr,  # [B, H, W, C], strides (x_sb, W * x_st, x_st, 1)
    weight_ptr,  # [C, 9]
    bias_ptr,  # [C]
    dz_ptr,  # [B, H, W, C], contiguous: gradient to what the activation is given; with SILU
    dparams_ptr,  # [programs per block of channels, 10 * C] fp32: taps [C, 9], bias [C]
    x_sb,
    x_st,
    H,
    W,
    strips,
    rows,
    C: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Gradients of a strip to what the activation is given, and to the taps."""
    b, h, end, w, d = place(H, W, strips, rows, C, COLUMNS, BLOCK)
    x_ptr += b * x_sb
    taps = load_taps(weight_ptr, d, C, False, False)
    bias = load_bias(bias_ptr, d, C, BLOCK, HAS_BIAS)
    ok = (w < W)[:, None] & (d < C)[None, :]
    sums = ()
    for _ in tl.static_range(10):
        sums = sums + (tl.zeros([COLUMNS, BLOCK], tl.float32),)
    above = load_row(x_ptr, h - 1, w, H, W, x_st, d, C)
    here = load_row(x_ptr, h, w, H, W, x_st, d, C)
    for row in range(h, end):
        below = load_row(x_ptr, row + 1, w, H, W, x_st, d, C)
        at = (b * H * W + row * W + w).to(tl.int64)[:, None] * C + d[None, :]
        dz = tl.load(dy_ptr + at, mask=ok, other=0.0).to(tl.float32)
        if SILU:
            z = convolve(above, here, below, taps, bias)
            sig = tl.sigmoid(z)
            dz = dz * sig * (1.0 + z * (1.0 - sig))
            tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=ok)
        new = ()
        for j in tl.static_range(3):
            new = new + (sums[j] + dz * above[j].to(tl.float32),)
        for j in tl.static_range(3):
            new = new + (sums[3 + j] + dz * here[j].to(tl.float32),)
        for j in tl.static_range(3):
            new = new + (sums[6 + j] + dz * below[j].to(tl.float32),)
        sums = new + (sums[9] + dz,)
        above = here
        here = below
    BLOCKS: tl.constexpr = (C + BLOCK - 1) // BLOCK
    out = dparams_ptr + (tl.program_id(0) // BLOCKS).to(tl.int64) * (10 * C)
    for i in tl.static_range(9):
        tl.store(out + d * 9 + i, tl.sum(sums[i], 0), mask=d < C)
    tl.store(out + 9 * C + d, tl.sum(sums[9], 0), mask=d < C)


def depthwise_conv_silu_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(conv(x)), the convolution depthwise, 3x3, padded with zeros to keep the map's size.

    Args:
        x: [B, H, W, C] float16, bfloat16 or float32; a slice of wider tokens is read in place.
        weight: [C, 1, 3, 3], any of these types.
        bias: [C], or None.

    Returns:
        [B, H, W, C] contiguous, in x's dtype.

    Raises:
        ValueError: on a wrong shape or device.
    """
    _check(x, weight, bias)
    return _conv(_even_tokens(x), weight, bias, silu=True)


def depthwise_conv_add_forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x + conv(x), otherwise as ``depthwise_conv_silu_forward``."""
    _check(x, weight, bias)
    return _conv(_even_tokens(x), weight, bias, shortcut=True)


def depthwise_conv_silu_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sums: Sums | None = None
) -> DepthwiseConvGradients:
    """Gradients of ``depthwise_conv_silu_forward``; deterministic.

    Args:
        dy: [B, H, W, C] gradient to the output.
        x: as given to the forward.
        weight: as given to the forward.
        bias: as given to the forward.
        sums: run by the caller, who then has the gradients to the parameters; None: they are found at once.

    Returns:
        Gradients in x's dtype and, for the parameters, float32.
    """
    return _backward(dy, x, weight, bias, sums, silu=True)


def depthwise_conv_add_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> DepthwiseConvGradients:
    """Gradients of ``depthwise_conv_add_forward``, otherwise as ``depthwise_conv_silu_backward``."""
    return _backward(dy, x, weight, bias, None, silu=False)


def _backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, sums: Sums | None, *,
    silu: bool,
) -> DepthwiseConvGradients:
    _check(x, weight, bias)
    check_shape("dy", dy, tuple(x.shape), "(B, H, W, C)")
    x, weight, dy = _even_tokens(x), weight.contiguous(), dy.contiguous()
    if not x.numel():
        return DepthwiseConvGradients(
            torch.empty_like(x), torch.zeros_like(weight, dtype=torch.float32),
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None,
        )  # fmt: skip
    layout = _layout(x)
    dz = _launch.empty(tuple(x.shape), dtype=x.dtype, device=x.device) if silu else dy
    parts = _launch.empty((layout.groups, 10 * x.shape[3]), dtype=torch.float32, device=x.device)
    _launch.launch(
        conv_bwd_kernel, layout.grid,
        dy, x, weight, bias, dz, parts, *layout.sizes, HAS_BIAS=bias is not None, SILU=silu, **layout.how,
    )  # fmt: skip
    dweight, dbias = over_rows(parts, sums).split_with_sizes((9 * x.shape[3], x.shape[3]))
    return DepthwiseConvGradients(
        x=_conv(dz, weight, None, flip=True, shortcut=not silu),
        weight=dweight.view(weight.shape),
        bias=dbias if bias is not None else None,
    )


def _check(x, weight, bias) -> None:
    check_device(x=x, weight=weight, bias=bias)
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected 4 axes (B, H, W, C)")
    check_shape("weight", weight, (x.shape[3], 1, 3, 3), "(C, 1, 3, 3)")
    if bias is not None:
        check_shape("bias", bias, (x.shape[3],), "(C,)")


def _even_tokens(x: torch.Tensor) -> torch.Tensor:
    """``x`` with one stride from token to token, copied only if needed."""
    x = rows_contiguous(x)
    return x if x.stride(1) == x.shape[2] * x.stride(2) else x.contiguous()


class _Layout(NamedTuple):
    """How a map is cut into programs."""

    grid: tuple[int]
    groups: int  # programs per block of channels
    sizes: tuple[int, ...]  # the kernels' arguments x_sb to rows
    how: dict[str, int]  # their compile-time arguments, which depend on the channels alone


def _layout(x: torch.Tensor) -> _Layout:
    """For a map that is not empty."""
    B, H, W, C = x.shape
    block = 64 if C % 64 == 0 else 32
    blocks = _launch.cdiv(C, block)
    columns = B * _launch.cdiv(W, _COLUMNS)
    rows = _launch.cdiv(H, min(_launch.cdiv(_PROGRAMS, columns * blocks), _launch.cdiv(H, 4)))
    strips = _launch.cdiv(H, rows)
    how = {"C": C, "COLUMNS": _COLUMNS, "BLOCK": block, "num_warps": block // 32}
    sizes = x.stride(0), x.stride(2), H, W, strips, rows
    return _Layout((columns * strips * blocks,), columns * strips, sizes, how)


def _conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, silu: bool = False, flip: bool = False,
    shortcut: bool = False,
) -> torch.Tensor:
    y = _launch.empty(tuple(x.shape), dtype=x.dtype, device=x.device)
    if x.numel():
        layout = _layout(x)
        _launch.launch(
            conv_kernel, layout.grid,
            x, weight.contiguous(), bias, y, *layout.sizes, HAS_BIAS=bias is not None, SILU=silu, FLIP=flip,
            SHORTCUT=shortcut, **layout.how,
        )  # fmt: skip
    return y
