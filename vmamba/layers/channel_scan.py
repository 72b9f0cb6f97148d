"""ViM2's channel mixer: a selective scan along the channels of every position.

Behrouz et al., "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
arXiv:2403.19888, section 3.2.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)

from .ssm import reset_ssm_parameters

__all__ = ["ChannelScan"]

DIRECTIONS = 2  # from the first channel to the last, and back
TAPS = 3
GRID = 7  # rows and columns of the map that describes a channel to the scan


class ChannelScan(nn.Module):
    """Project, scan the channels of each position both ways, gate, project; ``[B, H, W, C] -> [B, H, W, C]``.

    In the scan a channel is a step and a position a feature. The paper's maps between features would have as many
    weights as the image has positions, or their square; here all positions share them, so that any image size works.
    What they cannot share, B, C and a part of the step size, comes from the channel's map averaged over a 7 x 7 grid:

        ``step[p, e] = softplus(w . grid[e] + a u[p, e] + bias)``, ``(B[e], C[e]) = W grid[e]``.

    Args:
        dim: Channels C.
        inner: Channels E of the scan.
        d_state: States N per position.
    """

    def __init__(
            self, dim: int, inner: int, d_state: int = 16, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.inner, self.d_state = inner, d_state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(DIRECTIONS, TAPS, **dd))
        self.conv_bias = nn.Parameter(torch.empty(DIRECTIONS, **dd))
        self.x_proj = nn.Parameter(torch.empty(DIRECTIONS, 1 + 2 * d_state, GRID * GRID, **dd))
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, 1, **dd))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, **dd))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, d_state, **dd))
        self.D = nn.Parameter(torch.empty(DIRECTIONS, **dd))
        self.out_proj = nn.Linear(inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise all but the linear layers, which reset themselves."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)
        for parameter, fan_in in ((self.conv_weight, TAPS), (self.conv_bias, TAPS), (self.x_proj, GRID * GRID)):
            nn.init.uniform_(parameter, -fan_in ** -0.5, fan_in ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, H, W, _ = x.shape
        positions, inner = H * W, self.inner
        x, z = self.in_proj(x).chunk(2, dim=-1)
        both = torch.stack([x, x.flip(-1)], dim=1)  # [B, K, H, W, E]
        padded = F.pad(both, (2, 0))
        u = padded[..., :inner] * self.conv_weight[:, 0].view(-1, 1, 1, 1) + self.conv_bias.view(-1, 1, 1, 1)
        for tap in range(1, 3):
            u = u + padded[..., tap:tap + inner] * self.conv_weight[:, tap].view(-1, 1, 1, 1)
        u = F.silu(u).to(x.dtype)

        maps = u.permute(0, 1, 4, 2, 3).reshape(batch, 2 * inner, H, W)
        grid = F.adaptive_avg_pool2d(maps, (7, 7)).reshape(batch, 2, inner, 49)
        proj = torch.einsum("bkeg,kpg->bkpe", grid, self.x_proj)
        step, B, C = proj.split([1, self.d_state, self.d_state], dim=2)
        u = u.reshape(batch, 2, positions, inner)
        delta = (u * self.dt_weight.view(2, 1, 1) + step).to(u.dtype)
        y = torch.ops.vmamba.selective_scan(
            u.reshape(batch, 2 * positions, inner), delta.reshape(batch, 2 * positions, inner),
            -torch.exp(_repeat(self.A_log, positions)), B, C, _repeat(self.D.unsqueeze(1), positions).flatten(), None,
            _repeat(self.dt_bias.unsqueeze(1), positions).flatten(), True, None)[0]
        forwards, backwards = y.reshape(batch, 2, H, W, inner).unbind(1)
        y = (forwards + backwards.flip(-1)) * F.silu(z)
        return self.out_proj(y.to(z.dtype))


def _repeat(x: Tensor, positions: int) -> Tensor:
    """One row for each position: ``[K, N] -> [K * positions, N]``."""
    return x.unsqueeze(1).expand(-1, positions, -1).flatten(0, 1)
