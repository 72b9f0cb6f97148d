"""SS2D, the 2-D selective scan mixer of VMamba, on channels-last maps.

Liu et al., "VMamba: Visual State Space Model", arXiv:2401.10166, section 4.2 and figure 3.
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)
from vmamba.scans.order import default_directions, scan_routes

from .conv import Conv2dNHWC
from .out_norm import create_out_norm

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
        scan: Name of the scan order, or "cascade": rows both ways, then columns both ways on the result.
        directions: Number of directions K; None for the order's own.
        gate: Activation of the multiplicative branch z ("silu", or "identity" for a plain product); None for no branch.
        out_norm: Name in :data:`vmamba.layers.out_norm.OUT_NORMS`.
        out_act: Activation after the output norm; None for none.
        norm_eps: Epsilon of the LayerNorms.
    """

    def __init__(
            self, dim: int, d_state: int = 1, ssm_ratio: float = 1.0, dt_rank: int | None = None, d_conv: int = 3,
            conv_bias: bool = False, scan: str = "cross", directions: int | None = None, gate: str | None = None,
            out_norm: str = "layernorm", out_act: str | None = None, norm_eps: float = 1e-5,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.scan = scan
        self.cascade = scan == "cascade"
        directions = directions or (4 if self.cascade else default_directions(scan))
        scan_routes("cross" if self.cascade else scan, directions)  # an impossible combination fails here
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.d_inner = int(ssm_ratio * dim)
        self.d_state, self.directions = d_state, directions
        self.norm_eps = norm_eps

        self.gated = gate is not None
        self.in_proj = nn.Linear(dim, self.d_inner * (2 if self.gated else 1), bias=False, **dd)
        self.gate_act = get_act_layer(gate)() if gate is not None else nn.Identity()
        self.conv = Conv2dNHWC(
            self.d_inner, self.d_inner, d_conv, padding=(d_conv - 1) // 2, groups=self.d_inner, bias=conv_bias, **dd,
        ) if d_conv > 1 else nn.Identity()
        self.act = nn.SiLU()
        # One dense projection for all directions: it acts per token, so the order of the tokens does not matter.
        self.x_proj = nn.Linear(self.d_inner, directions * (self.dt_rank + 2 * d_state), bias=False, **dd)
        self.dt_weight = nn.Parameter(torch.empty(directions, self.d_inner, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.A_log = nn.Parameter(torch.empty(directions, self.d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.out_norm = create_out_norm(out_norm, self.d_inner, norm_eps, **dd)
        self.out_act = get_act_layer(out_act)() if out_act is not None else nn.Identity()
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4) -> None:
        """Initialise the parameters of the state-space model (its linear and convolution layers reset themselves).

        S4D-real decay rates ``A = -(1 .. N)``, unit skip, step sizes log-uniform in [dt_min, dt_max] at the start:
        Gu and Dao, arXiv:2312.00752, section 3.6.
        """
        with torch.no_grad():
            rates = torch.arange(1, self.d_state + 1, device=self.A_log.device, dtype=torch.float32)
            self.A_log.copy_(rates.log().expand_as(self.A_log))
            self.D.fill_(1.0)
            bound = self.dt_rank ** -0.5
            self.dt_weight.uniform_(-bound, bound)
            log_dt = torch.empty_like(self.dt_bias, dtype=torch.float32).uniform_(math.log(dt_min), math.log(dt_max))
            dt = log_dt.exp().clamp(min=dt_floor)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus

    def _cascade(self, x: Tensor) -> Tensor:
        """Scan each row on its own in both directions, then each column of the result; ``[B, H, W, D]`` both ways.

        As in the authors' code: each pass is preceded by a LayerNorm without parameters, and the reversed direction
        is added in the order of its walk, not of the line.
        """
        for column in (False, True):
            x = F.layer_norm(x, (self.d_inner,), None, None, self.norm_eps)
            if column:
                x = x.transpose(1, 2)
            k = 2 if column else 0
            B, S, T, D = x.shape
            lines = x.reshape(B * S, T, D)
            weight = self.x_proj.weight.view(4, self.dt_rank + 2 * self.d_state, D)[k:k + 2].flatten(0, 1)
            proj = F.linear(lines, weight).view(B * S, T, 2, self.dt_rank + 2 * self.d_state)
            y = torch.ops.vmamba.ss2d_scan(
                lines, proj, self.dt_weight[k:k + 2], self.dt_bias[k:k + 2], self.A_log[k:k + 2], self.D[k:k + 2],
                "bidi", 1, T, None, False)[0]
            x = (y[:, 0] + y[:, 1].flip(1)).view(B, S, T, D)
            if column:
                x = x.transpose(1, 2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        x = self.in_proj(x)
        z = x
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        x = self.act(self.conv(x))
        B, H, W, D = x.shape
        if self.cascade:
            y = self._cascade(x)
        else:
            tokens = x.reshape(B, H * W, D)
            proj = self.x_proj(tokens).view(B, H * W, self.directions, self.dt_rank + 2 * self.d_state)
            y = torch.ops.vmamba.ss2d_scan(
                tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, self.scan, H, W, None, True,
            )[0].view(B, H, W, D)
        y = self.out_act(self.out_norm(y).to(x.dtype))
        if self.gated:
            y = y * self.gate_act(z)
        return self.out_proj(y)
