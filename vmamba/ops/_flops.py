"""Operations of the scans, so that ``torch.utils.flop_counter.FlopCounterMode`` counts them like torch's own.

A selective scan counts as ``9 B L D N + B L D`` multiply-adds for L tokens, D channels (of all directions) and N
states: the rule of VMamba's authors (arXiv:2401.10166). The counter takes two operations for each. The projection of
the step sizes by ``dt_weight`` is part of ``ss2d_scan`` and counts as the matrix product it is.

The scan of Mamba-2 counts as what its recurrence does to each channel of each token, which is one state's decay, input
and output, ``3 N``, and the skip; without an order as the two products it is, ``2 N``, and the skip. The path in chunks
does more of them, as products of matrices. Neighbourhood attention counts its products with K * K neighbours.
"""
from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import neighborhood, selective_scan, ss2d_scan, ss2d_scan_norm, ssd_scan  # noqa: F401  (define the operators)

__all__: list[str] = []

Shape = tuple[int, ...]


def _scan(batch: int, tokens: int, channels: int, states: int) -> int:
    return 2 * batch * tokens * channels * (9 * states + 1)


@register_flop_formula(torch.ops.vmamba.selective_scan)
def _selective_scan(u: Shape, delta: Shape, A: Shape, *_: Any, **__: Any) -> int:
    """u [B, D, L], A [D, N]."""
    batch, channels, tokens = u
    return _scan(batch, tokens, channels, A[-1])


@register_flop_formula([
    torch.ops.vmamba.ss2d_scan, torch.ops.vmamba.ss2d_scan_norm, torch.ops.vmamba.ss2d_scan_norm_saving])
def _ss2d(x: Shape, proj: Shape, dt_weight: Shape, dt_bias: Any, A_log: Shape, *_: Any, **__: Any) -> int:
    """x [B, L, D] or [B, L, K, D], dt_weight [K, D, R], A_log [K, D, N]; all K directions."""
    directions, channels, rank = dt_weight
    batch, tokens = x[:2]
    products = 2 * batch * tokens * directions * channels * rank
    return _scan(batch, tokens, directions * channels, A_log[-1]) + products


@register_flop_formula(torch.ops.vmamba.ssd_scan)
def _ssd(x: Shape, dt: Shape, A: Shape, B: Shape, C: Shape, D: Any = None, dt_bias: Any = None,
         dt_softplus: bool = False, initial_state: Any = None, causal: bool = True, *_: Any, **__: Any) -> int:
    """x [B, L, H, P], B [B, L, G, N]."""
    batch, tokens, heads, channels = x
    return 2 * batch * tokens * heads * channels * ((3 if causal else 2) * B[-1] + 1)


@register_flop_formula(torch.ops.vmamba.neighborhood_weights)
def _neighborhood_weights(q: Shape, k: Shape, bias: Shape, window: int, *_: Any, **__: Any) -> int:
    """q [B, H, W, n, D]."""
    return 2 * math.prod(q) * window ** 2


@register_flop_formula(torch.ops.vmamba.neighborhood_apply)
def _neighborhood_apply(weights: Shape, v: Shape, window: int, *_: Any, **__: Any) -> int:
    """v [B, H, W, n, D]."""
    return 2 * math.prod(v) * window ** 2
