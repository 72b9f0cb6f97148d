"""Launchers of the general scan kernels, on strided views in one common form.

Common form: per-channel tensors [B, L, G, C], B and C [B, G, N, L], parameters [G, C] and A [G, N, C]; all by strides.
"""

from typing import NamedTuple

import torch

from . import _launch
from ._launch import fast_math
from ._scan_backward import scan_bwd_kernel
from ._scan_forward import scan_fwd_kernel
from .state_shapes import selective_scan_states_shape, tiles_per_state


class Scan(NamedTuple):
    """Inputs of a scan in the common form. Exactly one of ``delta`` and ``factors`` (with ``weight``) is given."""

    x: torch.Tensor  # [B, L, G, C]
    delta: torch.Tensor | None  # [B, L, G, C]
    factors: torch.Tensor | None  # [B, L, G, R], last axis contiguous
    weight: torch.Tensor | None  # [G, C, R] contiguous
    bias: torch.Tensor | None  # [G, C] contiguous
    A: torch.Tensor  # [G, N, C] contiguous float32
    B: torch.Tensor  # [B, G, N, L]
    C: torch.Tensor  # [B, G, N, L]
    skip: torch.Tensor | None  # [G, C] contiguous
    softplus: bool
    order: int = 0
    index: torch.Tensor | None = None
    visits: int = 0
    height: int = 1
    width: int = 1


class ScanGradients(NamedTuple):
    """Gradients in the common form; ``dz`` is that to delta's pre-activation."""

    dB: torch.Tensor  # [B, G, N, L] float32
    dC: torch.Tensor  # [B, G, N, L] float32
    dA: torch.Tensor  # [G, N, C] float32
    bias: torch.Tensor  # [G, C] float32
    skip: torch.Tensor  # [G, C] float32
    initial: torch.Tensor  # [B, G, N, C] float32


def _strides(t: torch.Tensor | None, count: int) -> tuple[int, ...]:
    return tuple(t.stride())[:count] if t is not None else (0,) * count


def _reorder(t: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides (b, l, g, n) of a [B, G, N, L] tensor."""
    b, g, n, position = t.stride()
    return b, position, g, n


def scan_forward(
    s: Scan,
    y: torch.Tensor,
    *,
    gate: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
    save: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill y [B, L, G, C] (and out, gated, with y's strides); return last states [B, G, N, C] and saved states."""
    B, L, G, C = s.x.shape
    N = s.A.shape[1]
    last = _launch.empty((B, G, N, C), dtype=torch.float32, device=s.x.device)
    every = tiles_per_state(N)
    shape = selective_scan_states_shape(B, G, s.visits, C, N)
    states = _launch.empty(shape, dtype=torch.float32, device=s.x.device) if save else None
    R = s.weight.shape[2] if s.weight is not None else 0
    if y.numel():
        scan_fwd_kernel[(B * G * -(-C // 32),)](
            s.x, s.delta, s.factors, s.weight, s.bias, s.A, s.B, s.C, s.skip, gate, y, out, initial, last, states,
            s.index,
            *s.x.stride(), *_strides(s.delta, 4), *_strides(s.factors, 3), *_reorder(s.B), *_reorder(s.C),
            *_strides(gate, 4), *y.stride(),
            L, s.visits, s.height, s.width, -(-(2**32) // s.height), every, N, G,
            C=C, K=G if s.weight is not None else 1, R=R, ORDER=s.order, SOFTPLUS=s.softplus,
            HAS_BIAS=s.bias is not None, HAS_SKIP=s.skip is not None, HAS_GATE=gate is not None,
            HAS_INITIAL=initial is not None, SAVE=save, PRECISE=s.x.dtype == torch.float32, FAST=fast_math(),
            num_warps=1, num_stages=1,
        )  # fmt: skip
    return last, states


def scan_backward(
    s: Scan,
    dy: torch.Tensor,
    states: torch.Tensor,
    dx: torch.Tensor,
    dz: torch.Tensor,
    *,
    dlast: torch.Tensor | None = None,
    partial: bool = False,
) -> ScanGradients:
    """Fill dx and dz [B, L, G, C]; return the other gradients.

    Args:
        s: the inputs.
        dy: [B, L, G, C] gradient to y.
        states: what ``scan_forward(save=True)`` returned.
        dx: output.
        dz: output.
        dlast: [B, G, N, C] contiguous float32 gradient to the last states, or None.
        partial: some tokens may never be visited.
    """
    B, L, G, C = s.x.shape
    N = s.A.shape[1]
    every = tiles_per_state(N)
    blocks = -(-C // 32)

    def new(*shape: int) -> torch.Tensor:
        return _launch.empty(shape, dtype=torch.float32, device=s.x.device)

    scratch = new(B, G, every, N, C)
    carry = new(B, G, N, C)
    dA = new(B, G, N, C)
    dvec = new(B, 2, G, C)
    dbc = new(blocks, B, G, 2, N, L)
    if partial:
        dbc.zero_()
    if dx.numel():
        scan_bwd_kernel[(B * G * blocks,)](
            dy, s.x, s.delta, s.factors, s.weight, s.bias, s.A, s.B, s.C, s.skip, states, dlast, scratch, carry, dA,
            dvec, dx, dz, dbc, s.index,
            *dy.stride(), *s.x.stride(), *_strides(s.delta, 4), *_strides(s.factors, 3), *_reorder(s.B), *_reorder(s.C),
            *dx.stride(), *dz.stride(),
            B, L, s.visits, s.height, s.width, -(-(2**32) // s.height), every, N, G,
            C=C, K=G if s.weight is not None else 1, R=s.weight.shape[2] if s.weight is not None else 0,
            ORDER=s.order, SOFTPLUS=s.softplus, HAS_BIAS=s.bias is not None, HAS_SKIP=s.skip is not None,
            HAS_DLAST=dlast is not None, PRECISE=s.x.dtype == torch.float32, FAST=fast_math(),
            num_warps=1, num_stages=1,
        )  # fmt: skip
    dbc = dbc.sum(0)
    dvec = dvec.sum(0)
    return ScanGradients(dbc[:, :, 0], dbc[:, :, 1], dA.sum(0), dvec[0], dvec[1], carry)
