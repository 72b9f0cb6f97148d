"""Gradients to the projection and to the delta weight, from the gradient to delta's pre-activation."""

import torch
import triton
import triton.language as tl

from . import _launch
from ._launch import fast_math, pow2
from ._sums import Sums, over_rows

_ROWS = 64  # tokens per step
_PROGRAMS = 528  # four per multiprocessor of the largest device


@triton.jit(do_not_specialize=["tokens", "blocks", "slices"])
def dproj_kernel(
    dz_ptr,  # [K, tokens, D]
    weight_ptr,  # [K, D, R]
    proj_ptr,  # [tokens, K, P]
    dbc_ptr,  # [blocks, K, tokens, P - R] fp32
    dproj_ptr,  # [tokens, K, P]
    dweight_ptr,  # [slices, K, D, R] fp32
    tokens,
    blocks,
    slices,
    D: tl.constexpr,
    DP: tl.constexpr,  # D rounded up to a power of two
    K: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,  # R likewise, at least 16
    P: tl.constexpr,
    ROWS: tl.constexpr,
    FAST: tl.constexpr,
):
    """One pass over dz: its products with the weight and with the factors, and the sums of dB and dC."""
    pid = tl.program_id(0)
    k = pid % K
    part = pid // K
    steps = tl.cdiv(tl.cdiv(tokens, ROWS), slices)
    d = tl.arange(0, DP)
    r = tl.arange(0, RP)
    two = tl.arange(0, 2)
    w_ok = (d < D)[:, None] & (r < R)[None, :]
    w = tl.load(weight_ptr + (k * D + d)[:, None] * R + r[None, :], mask=w_ok, other=0.0)
    TYPE: tl.constexpr = dz_ptr.dtype.element_ty if FAST else tl.float32  # the interpreter's bfloat16 product is wrong
    hi = w.to(TYPE)
    lo = (w - hi.to(tl.float32)).to(TYPE)
    d_w = tl.zeros([DP, RP], tl.float32)
    for i in tl.range(0, steps, num_stages=3):
        token = ((part * steps + i) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        ok = token < tokens
        dz_at = dz_ptr + (k * tokens.to(tl.int64) + token)[:, None] * D + d[None, :]
        dz = tl.load(dz_at, mask=ok[:, None] & (d < D)[None, :], other=0.0).to(TYPE)
        row = (token * K + k) * P
        r_ok = ok[:, None] & (r < R)[None, :]
        factors = tl.load(proj_ptr + row[:, None] + r[None, :], mask=r_ok, other=0.0).to(TYPE)
        d_w = tl.dot(tl.trans(dz), factors, d_w)
        d_factors = tl.dot(dz, lo, tl.dot(dz, hi))
        tl.store(dproj_ptr + row[:, None] + r[None, :], d_factors.to(dproj_ptr.dtype.element_ty), mask=r_ok)
        two_ok = ok[:, None] & (two < P - R)[None, :]
        bc_at = dbc_ptr + ((k * tokens.to(tl.int64) + token) * (P - R))[:, None] + two[None, :]
        bc = tl.load(bc_at, mask=two_ok, other=0.0)
        for block in range(1, blocks):
            bc += tl.load(bc_at + tl.cast(block, tl.int64) * tokens * (K * (P - R)), mask=two_ok, other=0.0)
        tl.store(dproj_ptr + row[:, None] + R + two[None, :], bc.to(dproj_ptr.dtype.element_ty), mask=two_ok)
    tl.store(dweight_ptr + ((part * K + k) * D + d)[:, None] * R + r[None, :], d_w, mask=w_ok)


@triton.jit(do_not_specialize=["rows", "blocks"])
def assemble_kernel(
    dbc_ptr,  # [blocks, K, rows / K, P - R] fp32, rows = tokens * K
    dfactors_ptr,  # [K, rows / K, R]
    proj_ptr,  # [rows, P]
    dproj_ptr,  # [rows, P]
    factors_ptr,  # [K, rows / K, R]: those of proj
    rows,
    blocks,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient to proj from that to the factors, by direction, and the partial sums of dB and dC.

    On the way it brings the factors themselves into the order of the directions.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = at < rows.to(tl.int64) * P
    row = at // P
    c = at % P
    by_k = (row % K) * (rows // K) + row // K
    is_factor = ok & (c < R)
    factors = tl.load(proj_ptr + at, mask=is_factor, other=0.0)
    tl.store(factors_ptr + by_k * R + c, factors.to(factors_ptr.dtype.element_ty), mask=is_factor)
    acc = tl.load(dfactors_ptr + by_k * R + c, mask=is_factor, other=0.0).to(tl.float32)
    bc_at = dbc_ptr + by_k * (P - R) + c - R
    for block in range(0, blocks):
        acc += tl.load(bc_at + tl.cast(block, tl.int64) * rows * (P - R), mask=ok & (c >= R), other=0.0)
    tl.store(dproj_ptr + at, acc.to(dproj_ptr.dtype.element_ty), mask=ok)


def projection_gradients(
    dz: torch.Tensor, dt_weight: torch.Tensor, proj: torch.Tensor, dbc: torch.Tensor, sums: Sums
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients to proj [B, L, K, P] and to dt_weight [K, D, R].

    Args:
        dz: [K, B * L, D] gradient to delta's pre-activation.
        dt_weight: [K, D, R] float32.
        proj: [B, L, K, P] contiguous.
        dbc: [blocks, K, B, L, P - R] float32 partial gradients to B and C.
        sums: what give the gradient to dt_weight when they are run.
    """
    K, tokens, D = dz.shape
    R, P = dt_weight.shape[2], proj.shape[3]
    dproj = _launch.empty(proj.shape, dtype=proj.dtype, device=proj.device)
    if dz.dtype == proj.dtype == torch.bfloat16 and D <= 256 and R <= 16 and tokens:
        slices = max(1, min(_PROGRAMS // K, _launch.cdiv(tokens, _ROWS)))
        dweight = _launch.empty((slices, K, D, R), dtype=torch.float32, device=dz.device)
        _launch.launch(
            dproj_kernel, (slices * K,),
            dz, dt_weight, proj, dbc, dproj, dweight, tokens, dbc.shape[0], slices,
            D=D, DP=pow2(D), K=K, R=R, RP=pow2(R), P=P, ROWS=_ROWS, FAST=fast_math(), num_warps=4,
        )  # fmt: skip
        return dproj, sums.over_rows(dweight.view(slices, -1)).view(K, D, R)
    # wide channels or exact types: library products, which read dz twice
    dfactors = torch.bmm(dz, dt_weight.to(dz.dtype))
    factors = _launch.empty((K, tokens, R), dtype=dz.dtype, device=dz.device)
    rows = tokens * K
    if rows:
        _launch.launch(
            assemble_kernel,
            (_launch.cdiv(rows * P, 1024),),
            dbc,
            dfactors,
            proj,
            dproj,
            factors,
            rows,
            dbc.shape[0],
            K=K,
            R=R,
            P=P,
            BLOCK=1024,
            num_warps=4,
        )
    return dproj, weight_gradient(dz, factors, sums)


def weight_gradient(dz: torch.Tensor, factors: torch.Tensor, sums: Sums | None = None) -> torch.Tensor:
    """[K, D, R] float32 product of dz [K, T, D] and factors [K, T, R] over T, in slices that fill the device."""
    K, T, D = dz.shape
    R = factors.shape[2]
    if T == 0:
        return dz.new_zeros((K, D, R), dtype=torch.float32)
    slices = max(s for s in range(1, 33) if T % s == 0)
    factors = factors.to(dz.dtype).contiguous().view(K * slices, T // slices, R)
    dz = dz.view(K * slices, T // slices, D)
    if dz.is_cuda and dz.dtype != torch.float32:
        parts = torch.bmm(dz.transpose(1, 2), factors, out_dtype=torch.float32)
    else:
        parts = torch.bmm(dz.transpose(1, 2).float(), factors.float())
    return over_rows(parts.view(K, slices, D * R), sums).view(K, D, R)
