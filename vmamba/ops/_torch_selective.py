"""Plain torch path of ``selective_scan``, forward and backward."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _grouped
from ._shapes import compute_dtype


def _to_groups(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """``[B, D, L] -> [B, G, L, D / G]``, always a copy, which the scan may overwrite."""
    return x.unflatten(1, (groups, -1)).transpose(2, 3).to(dtype, memory_format=torch.contiguous_format, copy=True)


def _from_groups(x: Tensor) -> Tensor:
    return x.transpose(2, 3).flatten(1, 2)


def _vector(v: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """``[D] -> [G, 1, D / G]``."""
    return v.to(dtype).view(groups, 1, -1)


def _raw_delta(delta: Tensor, groups: int, delta_bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Step sizes before the softplus, ``[B, G, L, D / G]``."""
    raw = _to_groups(delta, groups, dtype)
    return raw if delta_bias is None else raw.add_(_vector(delta_bias, groups, dtype))


def _state_to_groups(state: Tensor | None, groups: int, dtype: torch.dtype) -> Tensor | None:
    return state.unflatten(1, (groups, -1)).to(dtype) if state is not None else None


def _matrix(M: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, G, N, L] -> [B, G, L, N]``."""
    return M.transpose(2, 3).to(dtype, memory_format=torch.contiguous_format)


def forward(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns ``(y [B, D, L], last_state [B, D, N], block states [B, G, blocks, N, D / G], y before the gate)``.

    The last is empty without a gate.
    """
    dtype, groups = compute_dtype(u), B.shape[1]
    u_ = _to_groups(u, groups, dtype)
    delta_ = _raw_delta(delta, groups, delta_bias, dtype)
    if delta_softplus:
        delta_ = F.softplus(delta_)
    A_ = A.to(dtype).unflatten(0, (groups, -1))
    B_, C_ = _matrix(B, dtype), _matrix(C, dtype)
    h0 = _state_to_groups(initial_state, groups, dtype)
    if A.shape[1] == 1:
        states = _grouped.states_single(u_, delta_, A_, B_, h0)
        last = states[:, :, -1].unsqueeze(-1).clone()
        y_, starts = states.mul_(C_), states.new_empty(u.shape[0], groups, 0, 1, A_.shape[1])
    else:
        y_, last, starts = _grouped.forward_blocked(u_, delta_, A_, B_, C_, h0)
    if D is not None:
        y_.addcmul_(u_, _vector(D, groups, dtype))
    y = _from_groups(y_)
    ungated = u.new_empty(0)
    if z is not None:
        ungated, y = y.to(u.dtype).contiguous(), y * F.silu(z.to(dtype))
    return y.to(u.dtype).contiguous(), last.flatten(1, 2).contiguous(), starts, ungated


def backward(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
        initial_state: Tensor | None, starts: Tensor, ungated: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of (u, delta, A, B, C, D, z, delta_bias, initial_state); None for absent arguments."""
    dtype, groups = compute_dtype(u), B.shape[1]
    u_ = _to_groups(u, groups, dtype)
    raw = _raw_delta(delta, groups, delta_bias, dtype)
    delta_ = F.softplus(raw) if delta_softplus else raw
    A_ = A.to(dtype).unflatten(0, (groups, -1))
    B_, C_ = _matrix(B, dtype), _matrix(C, dtype)
    h0, dlast_ = (_state_to_groups(s, groups, dtype) for s in (initial_state, dlast))

    dy, dz, dD = dy.to(dtype), None, None
    if z is not None:
        z_ = z.to(dtype)
        gate = torch.sigmoid(z_)
        dz = dy * ungated.to(dtype) * gate * (1 + z_ * (1 - gate))
        dy = dy * z_ * gate
    dy_ = _to_groups(dy, groups, dtype)

    if A.shape[1] == 1:
        grads = _grouped.backward_single(dy_, dlast_, u_, delta_, A_, B_, C_, h0)
    else:
        grads = _grouped.backward_blocked(dy_, dlast_, u_, delta_, A_, B_, C_, starts)
    du_, draw = grads.u, grads.delta
    if D is not None:
        dD = (dy_ * u_).sum((0, 2)).flatten()
        du_ = du_.addcmul_(dy_, _vector(D, groups, dtype))
    if delta_softplus:
        draw = draw.mul_(torch.sigmoid(raw))
    dbias = draw.sum((0, 2)).flatten() if delta_bias is not None else None
    dinitial = grads.initial_state.flatten(1, 2) if grads.initial_state is not None else None
    return (
        _from_groups(du_), _from_groups(draw), grads.A.flatten(0, 1), grads.B.transpose(2, 3),
        grads.C.transpose(2, 3), dD, dz, dbias, dinitial)
