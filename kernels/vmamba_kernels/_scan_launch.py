"""Launchers of the general scan kernels, on strided views in one common form.

Common form: per-channel tensors [B, L, G, C], B and C [B, G, N, L], parameters [G, C] and A [G, N, C]; all by strides.
"""

from typing import Any, NamedTuple

import torch

from . import _launch, configs
from ._launch import accumulator_dtype, fast_math, interpreted
from ._own_memory import MOST
from ._primitives import LN2
from ._scan_arrange import VISITS, arrange_kernel, gather_kernel
from ._scan_backward import scan_bwd_kernel
from ._scan_forward import scan_fwd_kernel
from ._segments import chain_kernel, segment_kernel
from .state_shapes import SCAN_TILE, selective_scan_states_shape, tiles_per_state


class Scan(NamedTuple):
    """Inputs of a scan in the common form. Exactly one of ``delta`` and ``factors`` (with ``weight``) is given."""

    x: torch.Tensor  # [B, L, G, C]
    delta: torch.Tensor | None  # [B, L, G, C]
    factors: torch.Tensor | None  # [B, L, G, R], last axis contiguous
    weight: torch.Tensor | None  # [G, C, R] contiguous
    bias: torch.Tensor | None  # [G, C] contiguous
    A: torch.Tensor  # [G, C, N] contiguous: A, or with ``log`` the logarithm of -A
    log: bool
    B: torch.Tensor  # [B, G, N, L]
    C: torch.Tensor | None  # [B, G, N, L]; None: ones
    skip: torch.Tensor | None  # [G, C] contiguous
    softplus: bool
    order: int
    index: torch.Tensor | None
    visits: int
    height: int
    width: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, L, G, C, N."""
        return *self.x.shape, self.A.shape[2]


class ScanGradients(NamedTuple):
    """Gradients in the common form; those to x, delta's pre-activation, B and C go into given tensors."""

    dA: torch.Tensor  # [G, C, N] float32
    bias: torch.Tensor  # [G, C] float32
    skip: torch.Tensor  # [G, C] float32
    initial: torch.Tensor  # [B, G, N, C] float32


class _Plan(NamedTuple):
    """What the kernels of one call share."""

    scan: Scan
    a: torch.Tensor  # [G, N, C] float32
    bc: torch.Tensor  # [B, G, tiles, N, 2, 8] bfloat16 if B and C are, else float32
    segments: int
    span: int  # tiles per segment
    blocks: int  # of 32 channels

    @property
    def programs(self) -> tuple[int]:
        B, _, G, _, _ = self.scan.sizes
        return (B * G * self.blocks * self.segments,)

    @property
    def own(self) -> bool:
        """Whether the kernels use a program's own memory."""
        return (fast_math() or interpreted()) and configs.fits_own_memory(self.a.shape[1])

    def own_memory(self) -> torch.Tensor | None:
        """What stands for it in the interpreter."""
        return _empty(self.a, *self.programs, MOST.value // 4) if self.own and interpreted() else None

    @property
    def sequence(self) -> tuple[int, ...]:
        """The arguments that every kernel takes first after the strides."""
        s = self.scan
        return (*_grid(s), self.bc.shape[2], self.segments, self.span, s.x.shape[2])

    def how(self, walk: str) -> dict[str, Any]:
        """The compile-time arguments that every kernel takes; ``walk`` is "forward" or "backward"."""
        s = self.scan
        _, _, G, C, N = s.sizes
        return {
            "N": N, "NB": configs.states_at_a_time(N, walk), "C": C, "K": G if s.weight is not None else 1,
            "R": s.weight.shape[2] if s.weight is not None else 0, "ORDER": s.order, "SOFTPLUS": s.softplus,
            "HAS_BIAS": s.bias is not None, "PRECISE": s.x.dtype == torch.float32,
            "FAST": fast_math(), "num_warps": 1, "num_stages": 1, "maxnreg": configs.SCAN_REGISTERS,
        }  # fmt: skip


def _grid(s: Scan) -> tuple[int, ...]:
    return s.x.shape[1], s.visits, s.height, s.width, -(-(2**32) // s.height)


def _strides(t: torch.Tensor | None, count: int = 4) -> tuple[int, ...]:
    return tuple(t.stride())[:count] if t is not None else (0,) * count


def _position_second(t: torch.Tensor | None) -> tuple[int, ...]:
    """Strides (b, l, g, n) of a [B, G, N, L] tensor."""
    b, g, n, position = _strides(t)
    return b, position, g, n


def _empty(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return _launch.empty(shape, dtype=torch.float32, device=like.device)


def _plan(s: Scan, tiles_per_span: int | None = None) -> _Plan:
    """Arrange A, B and C; cut into segments of ``tiles_per_span`` tiles, or as fits the device."""
    B, _, G, C, N = s.sizes
    tiles = -(-s.visits // SCAN_TILE)
    a = _empty(s.x, G, N, C)
    half = s.B.dtype is torch.bfloat16 and (s.C is None or s.C.dtype is torch.bfloat16)
    bc = _launch.empty(
        (B, G, tiles, N, 2, SCAN_TILE), dtype=torch.bfloat16 if half else torch.float32, device=s.x.device)
    blocks = -(-C // 32)
    chunks = B * G * -(-tiles * SCAN_TILE // VISITS)
    _launch.launch(
        arrange_kernel, (chunks + -(-a.numel() // 1024),),
        s.B, s.C, bc, s.A, a, s.index, *_position_second(s.B), *_position_second(s.C), *_grid(s), tiles, N, G, C,
        chunks, K=G if s.weight is not None else 1, ORDER=s.order, LOG=s.log, HAS_C=s.C is not None, FAST=fast_math(),
        num_warps=4,
    )  # fmt: skip
    span = tiles_per_span or configs.segment_length(B * G * blocks, tiles, tiles_per_state(N), SCAN_TILE)
    return _Plan(s, a, bc, -(-tiles // span), span, blocks)


def _entries(
    plan: _Plan, values: torch.Tensor, first: torch.Tensor | None, *, adjoint: bool
) -> tuple[torch.Tensor, bool]:
    """State (or adjoint carry) with which each segment begins, [B, G, segments, N, C], and whether any is set.

    Args:
        plan: of the call.
        values: [B, L, G, C]: x, or dy for the adjoint.
        first: [B, G, N, C] that of the first segment (adjoint: of the last), or None for zero.
        adjoint: walk backwards.
    """
    s = plan.scan
    B, _, G, C, N = s.sizes
    if plan.segments == 1:
        if first is None:
            return _empty(s.x, B, G, 1, N, C), False
        return first.float().unsqueeze(2).clone(memory_format=torch.contiguous_format), True
    entry = _empty(s.x, B, G, plan.segments, N, C)
    end = _empty(s.x, *entry.shape)
    total = _empty(s.x, B, G, plan.segments, C)
    _launch.launch(
        segment_kernel, plan.programs,
        values, s.delta, s.factors, s.weight, s.bias, plan.a, plan.bc, end, total, s.index,
        *_strides(values), *_strides(s.delta), *_strides(s.factors, 3), *plan.sequence, ADJOINT=adjoint,
        **plan.how("forward"),
    )  # fmt: skip
    first = first.float().contiguous() if first is not None else None
    _launch.launch(
        chain_kernel, (B * G * plan.blocks * N,),
        end, total, plan.a, entry, first, plan.segments, N, G, C=C, HAS_FIRST=first is not None, ADJOINT=adjoint,
        FAST=fast_math(), num_warps=1,
    )  # fmt: skip
    return entry, True


def segment_entries(s: Scan, values: torch.Tensor, span: int, *, adjoint: bool) -> torch.Tensor:
    """What enters each segment of ``span`` visits, [B, G, segments, N, C]; see ``_entries``."""
    return _entries(_plan(s, span // SCAN_TILE), values, None, adjoint=adjoint)[0]


def scan_forward(
    s: Scan,
    y: torch.Tensor,
    *,
    gate: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    initial: torch.Tensor | None = None,
    save: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill y [B, L, G, C] (and out, gated, with y's strides).

    Args:
        s: the inputs.
        y: output.
        gate: [B, L, G, C], or None.
        out: output with gate.
        initial: [B, G, N, C] state before the first visit, or None.
        save: also return the states that the backward needs.

    Returns:
        Last states [B, G, N, C], and saved states or None.
    """
    B, _, G, C, N = s.sizes
    shape = selective_scan_states_shape(B, G, s.visits, C, N)
    states = _launch.empty(shape, dtype=accumulator_dtype(s.x.dtype), device=s.x.device) if save else None
    if not y.numel():
        return _empty(s.x, B, G, N, C), states
    plan = _plan(s)
    running, enters = _entries(plan, s.x, initial, adjoint=False)
    _launch.launch(
        scan_fwd_kernel, plan.programs,
        s.x, s.delta, s.factors, s.weight, s.bias, plan.a, plan.bc, s.skip, gate, y, out, running, states, s.index,
        plan.own_memory(),
        *s.x.stride(), *_strides(s.delta), *_strides(s.factors, 3), *_strides(gate), *y.stride(), *plan.sequence,
        tiles_per_state(N), int(enters), HAS_SKIP=s.skip is not None, HAS_GATE=gate is not None, SAVE=save,
        OWN=plan.own, **plan.how("forward"),
    )  # fmt: skip
    return running[:, :, -1], states


def scan_backward(
    s: Scan,
    dy: torch.Tensor,
    states: torch.Tensor,
    dx: torch.Tensor,
    dz: torch.Tensor,
    dB: torch.Tensor,
    dC: torch.Tensor | None,
    *,
    initial: torch.Tensor | None = None,
    dlast: torch.Tensor | None = None,
) -> ScanGradients:
    """Fill the gradients to x, delta's pre-activation, B and C; return the others.

    Args:
        s: the inputs; not empty.
        dy: [B, L, G, C] gradient to y.
        states: what ``scan_forward(save=True)`` returned.
        dx: [B, L, G, C] output. This one and the next three are written at visited tokens only.
        dz: [B, L, G, C] output.
        dB: [B, G, N, L] output, any dtype and strides.
        dC: likewise; None where the scan has no C.
        initial: as given to the forward.
        dlast: [B, G, N, C] gradient to the last states, or None.
    """
    B, _, G, C, N = s.sizes
    every = tiles_per_state(N)
    plan = _plan(s)
    carry, enters = _entries(plan, dy, dlast, adjoint=True)
    initial = initial.float().contiguous() if initial is not None else None
    scratch = None if plan.own else _empty(s.x, B, G, plan.segments, every, N, C)
    dA = _empty(s.x, B, G, plan.segments, N, C)
    dvec = _empty(s.x, B, plan.segments, 2, G, C)
    dbc = _empty(s.x, plan.blocks, *plan.bc.shape)
    _launch.launch(
        scan_bwd_kernel, plan.programs,
        dy, s.x, s.delta, s.factors, s.weight, s.bias, plan.a, plan.bc, s.skip, states, initial, scratch, carry, dA,
        dvec, dx, dz, dbc, s.index, plan.own_memory(),
        *dy.stride(), *s.x.stride(), *_strides(s.delta), *_strides(s.factors, 3), *dx.stride(), *dz.stride(),
        *plan.sequence, B, int(enters), FIRST=configs.states_at_a_time(N, "first pass"), EVERY=every, OWN=plan.own,
        HAS_SKIP=s.skip is not None, HAS_FIRST=initial is not None, **plan.how("backward"),
    )  # fmt: skip
    tiles = plan.bc.shape[2]
    _launch.launch(
        gather_kernel, (B * G * -(-tiles * SCAN_TILE // VISITS),),
        dbc, dB, dC, s.index, *_position_second(dB), *_position_second(dC), B, *_grid(s), tiles, N, G, plan.blocks,
        K=G if s.weight is not None else 1, ORDER=s.order, HAS_C=dC is not None, num_warps=4,
    )  # fmt: skip
    vec = dvec.sum((0, 1))
    # the kernel's time is in units of log 2
    return ScanGradients(dA.sum((0, 2)).transpose(1, 2) * LN2.value, vec[0], vec[1], carry[:, :, 0])
