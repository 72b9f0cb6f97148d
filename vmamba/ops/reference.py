"""Readable references of the scan operators: the truth that every other path is tested against.

Plain differentiable torch, one time step after another, in float32 (float64 for float64 inputs).
Gu and Dao, "Mamba", arXiv:2312.00752, algorithm 2, with the zero-order hold for A and the Euler rule for B.

Shape letters: B batch, L tokens, D channels, K directions, G groups, N state, R delta rank, T steps of a walk.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import ScanOrder

from ._shapes import compute_dtype, ss2d_output_dtype

__all__ = ["norm_and_gate", "selective_scan_reference", "ss2d_scan_norm_reference", "ss2d_scan_reference"]


def selective_scan_reference(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
        delta_bias: Tensor | None = None, delta_softplus: bool = False, initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Selective scan, one step at a time; arguments as in :func:`vmamba.ops.selective_scan`.

    Returns:
        ``(y [B, D, L] in the dtype of u, last_state [B, D, N] in the compute dtype)``.
    """
    dtype = compute_dtype(u)
    batch, channels, length = u.shape
    u_, delta_ = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        delta_ = delta_ + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta_ = F.softplus(delta_)
    repeats = channels // B.shape[1]
    B_ = B.to(dtype).repeat_interleave(repeats, dim=1)  # [B, D, N, L]
    C_ = C.to(dtype).repeat_interleave(repeats, dim=1)
    decay = torch.exp(delta_.unsqueeze(2) * A.to(dtype).unsqueeze(-1))  # [B, D, N, L]
    drive = (delta_ * u_).unsqueeze(2) * B_

    state = u_.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(length):
        state = decay[..., t] * state + drive[..., t]
        outputs.append((state * C_[..., t]).sum(-1))
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D.to(dtype)[:, None] * u_
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), state


def ss2d_scan_reference(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: ScanOrder, merge: bool = True,
) -> Tensor:
    """Scan in K directions, each through :func:`selective_scan_reference`; see :func:`vmamba.ops.ss2d_scan`."""
    dtype = compute_dtype(x)
    directions, _, rank = dt_weight.shape
    states = A_log.shape[2]
    index, inverse = order.index.to(x.device).long(), order.inverse.to(x.device).long()

    outputs = []
    for k in range(directions):
        u = _take_rows((x if x.ndim == 3 else x[:, :, k]).to(dtype), index[k])  # [B, T, D]
        p = _take_rows(proj[:, :, k].to(dtype), index[k])  # [B, T, R + 2N]
        delta = p[..., :rank] @ dt_weight[k].to(dtype).t()
        B_ = p[..., rank:rank + states]
        C_ = p[..., rank + states:] if p.shape[-1] > rank + states else torch.ones_like(B_)
        y, _ = selective_scan_reference(
            u.transpose(1, 2), delta.transpose(1, 2), -torch.exp(A_log[k].to(dtype)),
            B_.transpose(1, 2).unsqueeze(1), C_.transpose(1, 2).unsqueeze(1),
            D_skip[k] if D_skip is not None else None,
            delta_bias=dt_bias[k] if dt_bias is not None else None, delta_softplus=True,
        )
        outputs.append(_take_rows(y.transpose(1, 2), inverse[k]))  # natural order; tokens never visited get zero
    y = torch.stack(outputs, dim=1)
    return (y.sum(1) if merge else y).to(ss2d_output_dtype(x))


def ss2d_scan_norm_reference(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: ScanOrder, norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, eps: float,
) -> Tensor:
    """:func:`ss2d_scan_reference`, LayerNorm and gate; see :func:`vmamba.ops.ss2d_scan_norm`."""
    wide = x.to(compute_dtype(x))  # the sum is not rounded before the norm
    merged = ss2d_scan_reference(wide, proj, dt_weight, dt_bias, A_log, D_skip, order)
    return norm_and_gate(merged, norm_weight, norm_bias, gate, eps).to(x.dtype)


def norm_and_gate(merged: Tensor, weight: Tensor, bias: Tensor, gate: Tensor | None, eps: float) -> Tensor:
    """What follows on the sum of the directions [B, L, D] in :func:`vmamba.ops.ss2d_scan_norm`, in its dtype."""
    y = F.layer_norm(merged, weight.shape, weight.to(merged.dtype), bias.to(merged.dtype), eps)
    return y if gate is None else y * F.silu(gate.to(y.dtype))


def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` of ``x`` [B, L, C] along L; -1 takes a row of zeros."""
    return F.pad(x, (0, 0, 0, 1))[:, torch.where(index < 0, x.shape[1], index)]
