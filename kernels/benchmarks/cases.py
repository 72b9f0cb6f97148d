"""What is benchmarked: each case builds its inputs, a forward and a backward, and counts its least work."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from vmamba_kernels import (
    merge_norm_backward,
    merge_norm_forward,
    selective_scan_backward,
    selective_scan_forward,
    ss2d_backward,
    ss2d_forward,
)

from tests.kernels.support.checks import check_selective_scan, check_ss2d, selective_scan_inputs, ss2d_inputs


class Case(NamedTuple):
    """A benchmark ready to run."""

    forward: Callable[[], object]
    backward: Callable[[], object]
    check: Callable[[], None]  # raises AssertionError where the kernels are wrong; on a smaller batch
    bytes_forward: int  # each input read once, each output written once
    bytes_backward: int
    exponentials_forward: int  # softplus' and one per state
    saved: int  # bytes kept between forward and backward


def _size(*tensors: torch.Tensor | None) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def ss2d_core(B: int, D: int, side: int, R: int, N: int = 1, K: int = 4) -> Case:
    """Projection, scan in four orders, merge and LayerNorm: the core of an SS2D block."""
    how = {"order": "cross", "height": side, "width": side}
    args = ss2d_inputs(B, side * side, D, R, N, K, torch.bfloat16, "cuda", delta_shift=-4.0)
    x = args["x"]
    weight = torch.randn(K * (R + 2 * N), D, device="cuda", dtype=torch.bfloat16) * D**-0.5
    norm = torch.rand(D, device="cuda"), torch.randn(D, device="cuda")
    dout = torch.randn_like(x)
    kept: dict = {}

    def forward(save: bool = False):
        proj = F.linear(x, weight).view(*args["proj"].shape)
        rest = {**args, "proj": proj}
        y, states = ss2d_forward(*rest.values(), **how, merge=False, save_states=save)
        out, merged = merge_norm_forward(y, *norm, save=save)
        if save:
            kept.update(rest=rest, states=states, merged=merged)
        return out

    def backward():
        dy = merge_norm_backward(dout, kept["merged"], *norm).merged
        g = ss2d_backward(dy, *kept["rest"].values(), kept["states"], **how)
        dproj = g.proj.view(-1, weight.shape[0])
        dx = g.x.view(-1, D).addmm_(dproj, weight)  # into the scan's gradient: no addition of its own
        return dx, dproj.t() @ x.view(-1, D), g

    out = forward(save=True)
    small = ss2d_inputs(1, side * side, D, R, N, K, torch.bfloat16, "cuda", delta_shift=-4.0)
    return Case(
        forward,
        backward,
        lambda: check_ss2d(small, **how),
        2 * _size(x) + 2 * _size(args["proj"]) + _size(out),
        4 * _size(x) + 3 * _size(args["proj"]) + _size(out),
        B * side * side * D * K * (1 + N),
        _size(x, args["proj"], kept["states"], kept["merged"]),
    )


def ss2d_scan(
    B: int, D: int, side: int, R: int, N: int, K: int = 4, order: str = "cross", height: int | None = None
) -> Case:
    """The scan alone, directions merged."""
    L = side * (height or side)
    how = {"order": order, "height": height or side, "width": side}
    args = ss2d_inputs(B, L, D, R, N, K, torch.bfloat16, "cuda", delta_shift=-4.0)
    dy = torch.randn_like(args["x"])
    y, states = ss2d_forward(*args.values(), **how, save_states=True)
    side_checked, height_checked = min(side, 64), min(height or side, 64)  # the loop takes a launch per token
    small = ss2d_inputs(1, side_checked * height_checked, D, R, N, K, torch.bfloat16, "cuda", delta_shift=-4.0)
    x, proj = _size(args["x"]), _size(args["proj"])
    return Case(
        lambda save=False: ss2d_forward(*args.values(), **how, save_states=save),
        lambda: ss2d_backward(dy, *args.values(), states, **how),
        lambda: check_ss2d(small, order, height=height_checked, width=side_checked),
        x + proj + _size(y),
        3 * x + 2 * proj,
        B * L * D * K * (1 + N),
        x + proj + _size(states),
    )


def selective_scan(B: int, D: int, L: int, N: int, channels_last: bool) -> Case:
    """mamba-ssm's operator with a gate, as in a Vim-Tiny layer's one direction."""
    args = selective_scan_inputs(B, D, L, N, 1, torch.bfloat16, "cuda")
    args["initial_state"] = None
    small = {n: t[:1] if n in ("u", "delta", "B", "C", "z") else t for n, t in args.items()}
    if channels_last:  # in memory
        args = {n: t.mT.contiguous().mT if n in ("u", "delta", "z") else t for n, t in args.items()}
        args = {
            n: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if n in ("B", "C") else t for n, t in args.items()
        }
    dout = torch.randn_like(args["u"])
    _, _, saved = selective_scan_forward(*args.values(), save=True)
    u, bc = _size(args["u"]), _size(args["B"], args["C"])
    return Case(
        lambda save=False: selective_scan_forward(*args.values(), save=save),
        lambda: selective_scan_backward(dout, *args.values(), saved),
        lambda: check_selective_scan(small, channels_last),
        4 * u + bc,
        7 * u + 2 * bc,
        B * D * L * (1 + N),
        4 * u + bc + _size(saved.states),
    )


CASES: dict[str, Callable[[], Case]] = {
    "core_b128_d96_56x56_n1": lambda: ss2d_core(128, 96, 56, 6),
    "core_b128_d192_28x28_n1": lambda: ss2d_core(128, 192, 28, 12),
    "core_b128_d384_14x14_n1": lambda: ss2d_core(128, 384, 14, 24),
    "core_b128_d768_7x7_n1": lambda: ss2d_core(128, 768, 7, 48),
    "scan_b64_d192_56x56_n16": lambda: ss2d_scan(64, 192, 56, 12, 16),
    "scan_b128_k1_d384_l197_n16": lambda: ss2d_scan(128, 384, 197, 24, 16, 1, "uni", 1),
    "scan_b1_d96_256x256_n1": lambda: ss2d_scan(1, 96, 256, 6, 1),
    "mamba_b128_d384_l197_n16": lambda: selective_scan(128, 384, 197, 16, False),
    "mamba_b128_d384_l197_n16_channels_last": lambda: selective_scan(128, 384, 197, 16, True),
}
