"""MambaVision's mixer: half of the channels through a selective scan, the other half past it.

Hatamizadeh and Kautz, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", arXiv:2407.08083, section 3.2.
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)

from .ssm import reset_ssm_parameters

__all__ = ["SplitMixer"]

TAPS = 3


class SplitMixer(nn.Module):
    """Project, convolve, scan the first half of the channels, concatenate, project; ``[B, L, C] -> [B, L, C]``.

    The bias of the step sizes counts twice, ``softplus(W r + 2 b)``: released weights were trained so.

    Args:
        dim: Channels C, an even number.
        d_state: States N per channel.
    """

    def __init__(self, dim: int, d_state: int = 8, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        half, self.dt_rank = dim // 2, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(dim, TAPS, **dd))
        self.x_proj = nn.Linear(half, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_weight = nn.Parameter(torch.empty(half, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(half, **dd))
        self.A_log = nn.Parameter(torch.empty(half, d_state, **dd))
        self.D = nn.Parameter(torch.empty(half, **dd))
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise all but the linear layers, which reset themselves."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)
        nn.init.uniform_(self.conv_weight, -TAPS ** -0.5, TAPS ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        # shifted products, of which a compiler makes one kernel without channels-first copies
        padded = F.pad(self.in_proj(x), (0, 0, 1, 1))
        y = padded[:, :length] * self.conv_weight[:, 0]
        for tap in range(1, 3):
            y = y + padded[:, tap:tap + length] * self.conv_weight[:, tap]
        u, z = F.silu(y).to(padded.dtype).chunk(2, dim=-1)
        u = u.contiguous()
        y = torch.ops.vmamba.ss2d_scan(
            u, self.x_proj(u).unsqueeze(2), self.dt_weight.unsqueeze(0), 2 * self.dt_bias.unsqueeze(0),
            self.A_log.unsqueeze(0), self.D.unsqueeze(0), "uni", 1, length, None, True)[0]
        return self.out_proj(torch.cat([y.to(z.dtype), z], dim=-1))
