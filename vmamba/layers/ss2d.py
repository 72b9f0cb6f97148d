"""SS2D, the 2-D selective scan mixer of VMamba, on channels-last maps.

Liu et al., "VMamba: Visual State Space Model", arXiv:2401.10166, section 4.2 and figure 3.
"""
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from vmamba.ops import ss2d_mixer
from vmamba.ops.ss2d_scan_norm import ss2d_scan_norm_call
from vmamba.scans import default_directions, scan_order

from .conv import DepthwiseConvSiLU
from .norm import LayerNorm
from .plain import is_plain, runs_alone_on_gpu
from .ssm import reset_ssm_parameters

__all__ = ["SS2D"]


class SS2D(nn.Module):
    """Project, mix locally by a depthwise convolution, scan in K directions, normalise, (gate,) project back.

    Args:
        dim: Channels C of input and output.
        d_state: States N per channel.
        ssm_ratio: Inner channels D as a multiple of C.
        dt_rank: Rank R of the step sizes; None for ``ceil(C / 16)``.
        d_conv: Kernel size of the depthwise convolution; below 2 for none.
        conv_bias: Whether that convolution has a bias.
        scan: Name of the scan order, see :func:`vmamba.scans.list_scans`.
        directions: Number of directions K; None for the order's own.
        gate: Multiply by ``silu(z)``, z a second half of the input projection.
        norm_eps: Epsilon of the LayerNorm over the merged scan.

    Raises:
        ValueError: ``scan`` is not registered, has no version with that many directions, or walks copies of the map.
    """

    def __init__(
            self, dim: int, d_state: int = 1, ssm_ratio: float = 1.0, dt_rank: int | None = None, d_conv: int = 3,
            conv_bias: bool = False, scan: str = "cross", directions: int | None = None, gate: bool = False,
            norm_eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        directions = directions or default_directions(scan)
        # an order that does not fit fails here, not at the first image
        if scan_order(scan, (2, 2), directions).num_tokens != 4:
            raise ValueError(f"the order {scan!r} walks copies of the map, but SS2D scans the map itself")
        self.scan, self.directions = scan, directions
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.d_inner, self.d_state = int(ssm_ratio * dim), d_state
        self.gated, self.norm_eps = gate, norm_eps

        self.in_proj = nn.Linear(dim, self.d_inner * (2 if gate else 1), bias=False, **dd)
        self.conv = DepthwiseConvSiLU(self.d_inner, d_conv, conv_bias, **dd) if d_conv > 1 else nn.SiLU()
        # One dense projection for all directions: it acts per token, so the order of the tokens does not matter.
        self.x_proj = nn.Linear(self.d_inner, directions * (self.dt_rank + 2 * d_state), bias=False, **dd)
        self.dt_weight = nn.Parameter(torch.empty(directions, self.d_inner, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.A_log = nn.Parameter(torch.empty(directions, self.d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.out_norm: nn.Module = LayerNorm(self.d_inner, eps=norm_eps, **dd)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise the parameters of the state-space model (its linear and convolution layers reset themselves)."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            fits = self.is_one_operator(x)
            if fits:
                return self._one_operator(x)
        B, H, W, _ = x.shape
        x = self.in_proj(x)
        gate: Tensor | None = None
        if self.gated:
            x, z = x.chunk(2, dim=-1)
            gate = z.reshape(B, H * W, self.d_inner)
        tokens = self.conv(x).reshape(B, H * W, self.d_inner)
        proj = self.x_proj(tokens).view(B, H * W, self.directions, self.dt_rank + 2 * self.d_state)
        norm = self.out_norm
        if torch.jit.is_scripting():
            y = torch.ops.vmamba.ss2d_scan_norm(
                tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, self.scan, H, W, None, norm.weight,
                norm.bias, gate, self.norm_eps)
        else:
            y = ss2d_scan_norm_call(
                tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, self.scan, H, W, None, norm.weight,
                norm.bias, gate, self.norm_eps, "auto")
        return self.out_proj(y).view(B, H, W, -1)

    @torch.jit.ignore
    def is_one_operator(self, x: Tensor) -> bool:
        """Whether one operator may do it all: on a GPU, where the host is slow, and where nothing looks inside."""
        return (
            runs_alone_on_gpu(x) and not self.gated and is_plain(self.conv, DepthwiseConvSiLU)
            and self.conv.kernel_size == (3, 3) and is_plain(self.out_norm, LayerNorm)
            and all(is_plain(m, nn.Linear) for m in (self.in_proj, self.x_proj, self.out_proj)))

    @torch.jit.ignore
    def operator_weights(self) -> tuple[Any, ...]:
        """The weights as that operator, ``ss2d_mixer``, takes them."""
        conv, norm = cast(DepthwiseConvSiLU, self.conv), cast(LayerNorm, self.out_norm)
        return (
            self.in_proj.weight, conv.weight, conv.bias, self.x_proj.weight, self.dt_weight, self.dt_bias, self.A_log,
            self.D, norm.weight, norm.bias, self.out_proj.weight)

    @torch.jit.ignore
    def _one_operator(self, x: Tensor) -> Tensor:
        return ss2d_mixer(x, *self.operator_weights(), order=self.scan, eps=self.norm_eps)
