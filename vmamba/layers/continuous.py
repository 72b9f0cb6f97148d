"""The mixer of PlainMamba: one set of weights for four continuous scans that know where each step came from."""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)

from .conv import Conv2dNHWC
from .ssm import reset_ssm_parameters

__all__ = ["ContinuousMixer"]

MOVES = 5
"""Kinds of step: the first, right, left, up, down; see :func:`vmamba.scans.step_moves`."""


class ContinuousMixer(nn.Module):
    """Snake scans of a map along rows and columns, both ways, added and gated; ``[B, H, W, C]`` both ways.

    All four share their parameters; a learned vector per kind of step is added to B. Yang et al., "PlainMamba:
    Improving Non-Hierarchical Mamba in Visual Recognition", arXiv:2403.17695, section 3.2.

    Args:
        dim: Channels C of input and output.
        d_state: States N per channel.
        expand: Inner channels D as a multiple of C.
        d_conv: Kernel size of the depthwise convolution.
        as_released: Do what the released weights were trained with and the paper does not say: only the activations
            follow a scan's path, so that its step t takes step size, B and C of token t in row-major order; and the
            bias of the step sizes counts twice. False for the model of the paper.
    """

    def __init__(
            self, dim: int, d_state: int = 16, expand: int = 2, d_conv: int = 7, as_released: bool = True,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.scan, self.d_state, self.as_released = "snake4", d_state, as_released
        self.d_inner, self.dt_rank = expand * dim, math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * self.d_inner, **dd)
        self.conv = Conv2dNHWC(
            self.d_inner, self.d_inner, d_conv, padding=d_conv // 2, groups=self.d_inner, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.direction_B = nn.Parameter(torch.empty(MOVES, d_state, **dd))
        self.dt_weight = nn.Parameter(torch.empty(self.d_inner, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(self.d_inner, **dd))
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(self.d_inner, **dd))
        self.out_proj = nn.Linear(self.d_inner, dim, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise all but the linear and convolution layers, which reset themselves."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)
        nn.init.trunc_normal_(self.direction_B, std=0.02)

    def project(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Step-size factors, B and C of each direction at each token: ``[B, L, D] -> [B, L, 4, R + 2N]``."""
        proj = self.x_proj(tokens)
        arrivals = torch.ops.vmamba.arrivals(proj, self.scan, height, width)
        # a product with a selection, whose gradient is a product too: a lookup's would add in no fixed order
        moves = torch.arange(self.direction_B.shape[0], device=arrivals.device)
        chosen = (arrivals.unsqueeze(-1) == moves).to(self.direction_B.dtype)
        bias = F.pad(chosen @ self.direction_B, (self.dt_rank, self.d_state)).to(proj.dtype)
        if self.as_released:  # narrow rows, so that the activations can stay where they are
            return torch.ops.vmamba.reorder(proj, self.scan, height, width, False) + bias
        return proj.unsqueeze(2) + bias

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, dim=-1)
        tokens = self.act(self.conv(x)).reshape(B, H * W, self.d_inner)
        # not 2 * dt_bias: torch.onnx cannot decompose the product of a number and a parameter
        dt_bias = self.dt_bias + self.dt_bias if self.as_released else self.dt_bias
        y = torch.ops.vmamba.ss2d_scan(
            tokens, self.project(tokens, H, W), self.dt_weight.expand(4, -1, -1), dt_bias.expand(4, -1),
            self.A_log.expand(4, -1, -1), self.D.expand(4, -1), self.scan, H, W, None, True)[0]
        return self.out_proj((y.view(z.shape) * F.silu(z)).to(z.dtype))
