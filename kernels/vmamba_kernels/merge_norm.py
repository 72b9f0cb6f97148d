"""A sum and its LayerNorm in one pass.

    merge_norm:  out = LayerNorm(sum_k parts[:, k]) * silu(gate), after a scan in K directions
    add_norm:    sum = x + scale * branch, out = LayerNorm(sum), where a residual block ends and the next one begins

LayerNorm is Ba et al. 2016, equation 4, over the channel axis; its statistics are fp32, and recomputed backwards.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import accumulator_dtype, check_device, check_shape, rows_contiguous
from ._sums import Sums, over_rows


class MergeNormGradients(NamedTuple):
    """What ``merge_norm_backward`` returns; entries are None where the input was."""

    merged: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    gate: torch.Tensor | None


class AddNormGradients(NamedTuple):
    """What ``add_norm_backward`` returns; ``branch`` is ``x`` where both have one gradient."""

    x: torch.Tensor
    branch: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


@triton.jit
def standardise(m, ok, eps, D: tl.constexpr):
    """Rows with mean 0 and variance 1, zeros where not ok, and 1 / their standard deviations."""
    mean = tl.sum(m, 1) / D
    c = tl.where(ok, m - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(c * c, 1) / D + eps)
    return c * rstd[:, None], rstd


@triton.jit(do_not_specialize=["B", "L"])
def merge_norm_fwd_kernel(
    parts_ptr,  # [B, K, L, D], contiguous
    branch_ptr,  # [B, L, D], contiguous
    scale_ptr,  # [B] fp32
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    gate_ptr,  # [B, L, D], strides (gate_sb, gate_sl, 1)
    out_ptr,  # [B, L, D]
    merged_ptr,  # [B, L, D]
    gate_sb,
    gate_sl,
    B,
    L,
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,  # D rounded up to a power of two
    K: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Norm of the sum over directions and branch; program = a block of rows of one image."""
    blocks = tl.cdiv(L, ROWS)
    pid = tl.program_id(0)
    b = (pid // blocks).to(tl.int64)
    row = pid % blocks * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    ok = (row < L)[:, None] & (d < D)[None, :]
    at = row.to(tl.int64)[:, None] * D + d[None, :]  # within a plane of L rows

    m = tl.zeros([ROWS, DP], tl.float32)
    for k in tl.static_range(K):
        m += tl.load(parts_ptr + (b * K + k) * L * D + at, mask=ok, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        branch = tl.load(branch_ptr + b * L * D + at, mask=ok, other=0.0).to(tl.float32)
        if HAS_SCALE:
            branch = branch * tl.load(scale_ptr + b)
        m += branch
    if SAVE:
        tl.store(merged_ptr + b * L * D + at, m.to(merged_ptr.dtype.element_ty), mask=ok)
    out, _rstd = standardise(m, ok, eps, D)
    if HAS_WEIGHT:
        out = out * tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        out = out + tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    if HAS_GATE:
        z = tl.load(gate_ptr + b * gate_sb + row.to(tl.int64)[:, None] * gate_sl + d[None, :], mask=ok, other=0.0)
        z = z.to(tl.float32)
        out = out * (z * tl.sigmoid(z))
    tl.store(out_ptr + b * L * D + at, out.to(out_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["rows", "L", "per_program"])
def merge_norm_bwd_kernel(
    dout_ptr,  # [B, L, D], contiguous
    dsum_ptr,  # [B, L, D], contiguous: gradient to the sum from elsewhere
    merged_ptr,  # [B, L, D], contiguous
    scale_ptr,  # [B] fp32
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    gate_ptr,  # [B, L, D], strides (gate_sb, gate_sl, 1)
    dmerged_ptr,  # [B, L, D]
    dbranch_ptr,  # [B, L, D], with HAS_SCALE
    dgate_ptr,  # [B, L, D]
    dparams_ptr,  # [2, programs, D]: weight, bias
    gate_sb,
    gate_sl,
    rows,  # B * L
    L,
    per_program,  # blocks of ROWS rows that one program does
    eps,
    D: tl.constexpr,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_DSUM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    """Gradients of the norm; program = several blocks of rows, whose parameter gradients it adds up."""
    pid = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, DP)
    d_ok = d < D
    if HAS_WEIGHT:
        w = tl.load(weight_ptr + d, mask=d_ok, other=0.0).to(tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias_ptr + d, mask=d_ok, other=0.0).to(tl.float32)
    dw = tl.zeros([ROWS, DP], tl.float32)
    db = tl.zeros([ROWS, DP], tl.float32)
    for i in tl.range(0, per_program, num_stages=3):
        row = (pid * per_program + i) * ROWS + tl.arange(0, ROWS)
        row_ok = row < rows
        ok = row_ok[:, None] & d_ok[None, :]
        at = row[:, None] * D + d[None, :]
        dn = tl.load(dout_ptr + at, mask=ok, other=0.0).to(tl.float32)  # gradient to the norm's output
        m = tl.load(merged_ptr + at, mask=ok, other=0.0).to(tl.float32)
        hat, rstd = standardise(m, ok, eps, D)
        if HAS_GATE:
            z_at = (row // L)[:, None] * gate_sb + (row % L)[:, None] * gate_sl + d[None, :]
            z = tl.load(gate_ptr + z_at, mask=ok, other=0.0).to(tl.float32)
            sig = tl.sigmoid(z)
            norm = hat
            if HAS_WEIGHT:
                norm = norm * w[None, :]
            if HAS_BIAS:
                norm = norm + shift[None, :]
            dz = dn * norm * (sig * (1.0 + z * (1.0 - sig)))
            tl.store(dgate_ptr + at, dz.to(dgate_ptr.dtype.element_ty), mask=ok)
            dn = dn * (z * sig)
        dw += dn * hat
        db += dn
        if HAS_WEIGHT:
            dn = dn * w[None, :]
        mean_dn = tl.sum(dn, 1) / D
        mean_dn_hat = tl.sum(dn * hat, 1) / D
        dm = (dn - mean_dn[:, None] - hat * mean_dn_hat[:, None]) * rstd[:, None]
        if HAS_DSUM:
            dm += tl.load(dsum_ptr + at, mask=ok, other=0.0).to(tl.float32)
        if HAS_SCALE:
            scale = tl.load(scale_ptr + row // L, mask=row_ok, other=0.0)
            tl.store(dbranch_ptr + at, (dm * scale[:, None]).to(dbranch_ptr.dtype.element_ty), mask=ok)
        tl.store(dmerged_ptr + at, dm.to(dmerged_ptr.dtype.element_ty), mask=ok)
    if HAS_WEIGHT:
        tl.store(dparams_ptr + pid * D + d, tl.sum(dw, 0), mask=d_ok)
    if HAS_BIAS:
        tl.store(dparams_ptr + (tl.num_programs(0) + pid) * D + d, tl.sum(db, 0), mask=d_ok)


def merge_norm_forward(
    parts: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float = 1e-5,
    gate: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    save: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """LayerNorm of the sum of directions, times silu(gate).

    Args:
        parts: [B, K, L, D], what ``ss2d_forward(merge=False)`` returns; or [B, L, D] (K = 1).
        weight: [D] scale of the norm, or None.
        bias: [D] shift of the norm, or None.
        eps: added to the variance.
        gate: [B, L, D], last axis contiguous, other strides free; or None.
        out_dtype: dtype of the output; default that of ``parts``.
        save: also return what ``merge_norm_backward`` needs.

    Returns:
        out [B, L, D], and the merged sum [B, L, D] or None; it has the dtype of ``parts``, float32 for float16.

    Raises:
        ValueError: on a wrong shape or device.
    """
    parts = parts.contiguous()
    K = parts.shape[1] if parts.dim() == 4 else 1
    one = parts[:, 0] if parts.dim() == 4 else parts
    merged = _launch.empty_like(one, accumulator_dtype(parts.dtype)) if save else None
    out = _launch.empty_like(one, out_dtype)
    _forward(parts, K, None, None, out, merged, weight, bias, gate, eps)
    return out, merged


def merge_norm_backward(
    dout: torch.Tensor,
    merged: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float = 1e-5,
    gate: torch.Tensor | None = None,
    sums: Sums | None = None,
) -> MergeNormGradients:
    """Gradients of ``merge_norm_forward``; deterministic.

    Args:
        dout: [B, L, D] gradient to the output.
        merged: what ``merge_norm_forward(save=True)`` returned second.
        weight: as given to the forward.
        bias: as given to the forward.
        eps: as given to the forward.
        gate: as given to the forward.
        sums: run by the caller, who then has the gradients to weight and bias; None: they are found at once.

    Returns:
        Gradients to the merged sum [B, L, D] (the same for every direction), weight, bias (fp32) and gate.
    """
    dtype = accumulator_dtype(merged.dtype)
    dmerged, _, dgate, dweight, dbias = _backward(dout, None, merged, None, weight, bias, gate, eps, dtype, sums)
    return MergeNormGradients(
        merged=dmerged,
        weight=dweight if weight is not None else None,
        bias=dbias if bias is not None else None,
        gate=dgate,
    )


def add_norm_forward(
    x: torch.Tensor,
    branch: torch.Tensor | None,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + scale * branch and its LayerNorm.

    Args:
        x: [B, ..., D] float16, bfloat16 or float32.
        branch: the same shape and dtype; None: the sum is x.
        scale: [B] float32, of each image's branch; None for 1.
        weight: [D] scale of the norm.
        bias: [D] shift of the norm.
        eps: added to the variance.

    Returns:
        The sum (x itself without ``branch``) and its norm, in the shape and dtype of x.

    Raises:
        ValueError: on a wrong shape or device.
    """
    x = x.contiguous()
    total, out = None, _launch.empty_like(x)
    if branch is not None:
        check_shape("branch", branch, x.shape, "that of x")
        branch, total = branch.contiguous(), _launch.empty_like(x)
    _forward(x, 1, branch, scale, out, total, weight, bias, None, eps)
    return (x if total is None else total), out


def add_norm_backward(
    dout: torch.Tensor,
    dtotal: torch.Tensor | None,
    total: torch.Tensor,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float = 1e-5,
    sums: Sums | None = None,
) -> AddNormGradients:
    """Gradients of ``add_norm_forward``; deterministic.

    Args:
        dout: [B, ..., D] gradient to the norm.
        dtotal: the same shape: gradient to the sum from elsewhere, or None.
        total: the sum that ``add_norm_forward`` returned.
        scale: as given to the forward.
        weight: as given to the forward.
        bias: as given to the forward.
        eps: as given to the forward.
        sums: run by the caller, who then has the gradients to weight and bias; None: they are found at once.
    """
    dtotal, total = dtotal.contiguous() if dtotal is not None else None, total.contiguous()
    dx, dbranch, _, dweight, dbias = _backward(dout, dtotal, total, scale, weight, bias, None, eps, total.dtype, sums)
    return AddNormGradients(dx, dx if dbranch is None else dbranch, dweight, dbias)


def _rows_per_block(DP: int) -> int:
    return max(1, min(16, 2048 // DP))


def _forward(parts, K, branch, scale, out, merged, weight, bias, gate, eps) -> None:
    """Fill out and merged [B, ..., D]; parts is [B, K, ..., D]."""
    B, D = out.shape[0], out.shape[-1]
    _check_norm(out, parts, weight, bias, gate, scale)
    gate_sb = gate_sl = 0
    if gate is not None:
        gate = rows_contiguous(gate)
        gate_sb, gate_sl, _ = gate.stride()
    if out.numel():
        L = out.numel() // (B * D)
        DP = _launch.pow2(D, 1)
        rows = _rows_per_block(DP)
        _launch.launch(
            merge_norm_fwd_kernel, (B * _launch.cdiv(L, rows),),
            parts, branch, scale, weight, bias, gate, out, merged, gate_sb, gate_sl, B, L, eps,
            D=D, DP=DP, K=K, ROWS=rows, HAS_BRANCH=branch is not None, HAS_SCALE=scale is not None,
            HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_GATE=gate is not None,
            SAVE=merged is not None, num_warps=4,
        )  # fmt: skip


def _backward(
    dout, dsum, merged, scale, weight, bias, gate, eps, dtype, sums
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradients to the sum [B, ..., D], the scaled branch, the gate, weight and bias."""
    B, D = merged.shape[0], merged.shape[-1]
    check_shape("dout", dout, merged.shape, "that of the sum")
    _check_norm(merged, dout, weight, bias, gate, scale)
    dout, dgate, gate_sb, gate_sl = dout.contiguous(), None, 0, 0
    dmerged = _launch.empty_like(merged, dtype)
    dbranch = _launch.empty_like(merged, dtype) if scale is not None else None
    if gate is not None:
        gate = rows_contiguous(gate)
        gate_sb, gate_sl, _ = gate.stride()
        dgate = _launch.empty_like(gate)
    DP = _launch.pow2(D, 1)
    rows = _rows_per_block(DP)
    tokens = merged.numel() // D
    blocks = _launch.cdiv(tokens, rows)
    per_program = max(1, _launch.cdiv(blocks, 2048))
    programs = _launch.cdiv(blocks, per_program)
    dparams = _launch.empty((2, programs, D), dtype=torch.float32, device=merged.device)
    if programs:
        _launch.launch(
            merge_norm_bwd_kernel, (programs,),
            dout, dsum, merged, scale, weight, bias, gate, dmerged, dbranch, dgate, dparams, gate_sb, gate_sl,
            tokens, tokens // B, per_program, eps, D=D, DP=DP, ROWS=rows, HAS_DSUM=dsum is not None,
            HAS_SCALE=scale is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
            HAS_GATE=gate is not None, num_warps=4,
        )  # fmt: skip
    dweight, dbias = over_rows(dparams, sums).unbind()  # iterating costs the host more
    return dmerged, dbranch, dgate, dweight, dbias


def _check_norm(like, parts, weight, bias, gate, scale) -> None:
    check_device(parts=parts, weight=weight, bias=bias, gate=gate, scale=scale)
    D = like.shape[-1]
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            check_shape(name, t, (D,), "(D,)")
    if gate is not None:
        check_shape("gate", gate, like.shape, "(B, L, D)")
    if scale is not None:
        check_shape("scale", scale, like.shape[:1], "(B,)")
