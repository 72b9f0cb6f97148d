"""What is benchmarked: each case builds its inputs, a forward and a backward, and counts its least work."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from vmamba_kernels import (
    merge_norm_backward,
    merge_norm_forward,
    neighborhood_apply_backward,
    neighborhood_apply_forward,
    neighborhood_weights_backward,
    neighborhood_weights_forward,
    selective_scan_backward,
    selective_scan_forward,
    ss2d_backward,
    ss2d_forward,
    ssd_backward,
    ssd_forward,
)

from tests.kernels.support.checks import (
    check_neighborhood,
    check_selective_scan,
    check_ss2d,
    check_ssd,
    selective_scan_inputs,
    ss2d_inputs,
    ssd_inputs,
)


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


def ssd(B: int, L: int, H: int, P: int, G: int, N: int, causal: bool = True) -> Case:
    """Mamba-2's scan; without an order as in VSSD."""
    how = {"dtype": torch.bfloat16, "device": "cuda", "initial": False, "causal": causal}
    args = ssd_inputs(B, L, H, P, G, N, **how)
    y, last = ssd_forward(*args.values())
    dy = torch.randn_like(y)
    given = _size(args["x"], args["dt"], args["B"], args["C"])
    return Case(
        lambda save=False: ssd_forward(*args.values()),
        lambda: ssd_backward(dy, *args.values(), last_state=last),
        lambda: check_ssd(ssd_inputs(1, min(L, 1024), H, P, G, N, **how)),
        given + _size(y),
        2 * given + _size(y),
        B * L * H * 2,
        given,
    )


def neighborhood(B: int, side: int, heads: int, D: int, window: int, dilated: bool) -> Case:
    """Weights of windows and their sums, as in one half of the heads of A2Mamba."""
    q, k, v = torch.randn(3, B, side, side, heads, D, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(heads, 2 * window - 1, 2 * window - 1, device="cuda")
    dy = torch.randn_like(v)
    kept: dict = {}

    def forward(save: bool = False):
        kept["weights"] = neighborhood_weights_forward(q, k, bias, window, dilated)
        return neighborhood_apply_forward(kept["weights"], v, window, dilated)

    def backward():
        dweights, dv = neighborhood_apply_backward(dy, kept["weights"], v, window, dilated)
        return dv, *neighborhood_weights_backward(dweights, kept["weights"], q, k, window, dilated)

    y = forward()
    maps, weights = _size(q, k, v), _size(kept["weights"])
    return Case(
        forward, backward,
        lambda: check_neighborhood(q[:1], k[:1], v[:1], bias, window, dilated),
        maps + _size(y) + 2 * weights, 2 * maps + _size(y) + 4 * weights, B * side * side * heads * window**2,
        maps + weights,
    )  # fmt: skip


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
    "ssd_b128_h24_p16_g4_n64_56x56": lambda: ssd(128, 3136, 24, 16, 4, 64),
    "ssd_b128_h96_p16_g4_n64_14x14": lambda: ssd(128, 196, 96, 16, 4, 64),
    "ssd_b8_h24_p64_n128_l4096": lambda: ssd(8, 4096, 24, 64, 1, 128),
    "unordered_b128_h2_p64_n64_56x56": lambda: ssd(128, 3136, 2, 64, 1, 64, causal=False),
    "windows_b128_56x56_n1_d24_k11": lambda: neighborhood(128, 56, 1, 24, 11, False),
    "windows_b128_28x28_n2_d24_k9_dilated": lambda: neighborhood(128, 28, 2, 24, 9, True),
}
