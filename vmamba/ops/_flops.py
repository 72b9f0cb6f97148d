"""Operations of the scans, so that ``torch.utils.flop_counter.FlopCounterMode`` counts them like torch's own.

A selective scan counts as ``9 B L D N + B L D`` multiply-adds for L tokens, D channels (of all directions) and N
states: the rule of VMamba's authors (arXiv:2401.10166). The counter takes two operations for each. The projection of
the step sizes by ``dt_weight`` is part of ``ss2d_scan`` and counts as the matrix product it is.
"""
from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import selective_scan, ss2d_scan, ss2d_scan_norm  # noqa: F401  (define the operators)

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
