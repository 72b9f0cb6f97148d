"""Mamba mixers on token sequences with several paths, each with convolution, projections and decay rates of its own."""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)
from vmamba.scans import default_directions

from .channel_attention import ChannelAttention
from .ssm import reset_ssm_parameters

__all__ = ["BidirectionalMixer", "LocalPathMixer", "PathMixer"]


class PathMixer(nn.Module):
    """Parameters of a mixer with K paths over the same tokens, and the projection that all such mixers share.

    Args:
        dim: Channels C of input and output.
        directions: Number of paths K.
        d_state: States N per channel.
        expand: Inner channels D as a multiple of C.
        d_conv: Taps of the causal convolution along each path.
        dt_rank: Rank R of the step sizes; None for ``ceil(C / 16)``.
    """

    def __init__(
            self, dim: int, directions: int, d_state: int = 16, expand: int = 2, d_conv: int = 4,
            dt_rank: int | None = None, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.directions, self.d_state, self.d_conv = directions, d_state, d_conv
        self.d_inner, self.dt_rank = expand * dim, dt_rank or math.ceil(dim / 16)

        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(directions, self.d_inner, d_conv, **dd))
        self.conv_bias = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.x_proj = nn.Parameter(torch.empty(directions, self.dt_rank + 2 * d_state, self.d_inner, **dd))
        self.dt_weight = nn.Parameter(torch.empty(directions, self.d_inner, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.A_log = nn.Parameter(torch.empty(directions, self.d_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(directions, self.d_inner, **dd))
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise all but the linear layers, which reset themselves."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)
        for parameter, fan_in in (
                (self.conv_weight, self.d_conv), (self.conv_bias, self.d_conv), (self.x_proj, self.d_inner)):
            nn.init.uniform_(parameter, -fan_in ** -0.5, fan_in ** -0.5)

    def project(self, u: Tensor) -> Tensor:
        """Step-size factors, B and C of each path: ``[B, L, K, D] -> [B, L, K, R + 2N]``."""
        return torch.einsum("blkd,kpd->blkp", u, self.x_proj)

    def convolve(self, x: Tensor, k: int, reverse: bool) -> Tensor:
        """Causal convolution of the path k along a sequence or, in the sequence's order, backwards; ``[B, L, D]``.

        Written as shifted products: a compiler makes one kernel of them, without the channels-first copies of the
        library's convolution. What a path backwards has seen lies to the right, so its taps are shifted that way.
        """
        length, reach = x.shape[1], self.d_conv - 1
        padded = F.pad(x, (0, 0, 0, reach) if reverse else (0, 0, reach, 0))
        y = self.conv_bias[k]
        for tap in range(self.d_conv):
            start = reach - tap if reverse else tap
            y = y + padded[:, start:start + length] * self.conv_weight[k, :, tap]
        return y


class BidirectionalMixer(PathMixer):
    """Two Mamba paths over a sequence, forwards and backwards, gated and averaged; ``[B, L, C] -> [B, L, C]``.

    Zhu et al., "Vision Mamba", arXiv:2401.09417, algorithm 1. The gate is a function of the token alone, so it
    multiplies the average instead of each path.
    """

    def __init__(self, dim: int, device: Any = None, dtype: torch.dtype | None = None, **sizes: Any) -> None:
        super().__init__(dim, directions=2, **sizes, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(torch.stack([self.convolve(x, 0, False), self.convolve(x, 1, True)], 2)).to(x.dtype)
        y = torch.ops.vmamba.ss2d_scan(
            u, self.project(u), self.dt_weight, self.dt_bias, self.A_log, self.D, "bidi", 1, u.shape[1], None, False)[0]
        return self.out_proj((y.mean(1) * F.silu(z)).to(z.dtype))


class LocalPathMixer(PathMixer):
    """Mamba along several walks of a grid, each weighed by channel attention before they are added.

    ``[B, L, C]`` both ways, L as many as the walks have tokens on an H x W grid. Huang et al., "LocalMamba",
    arXiv:2403.09338, section 4. The convolution runs along each walk, so the tokens are brought into the order of the
    walks, zero tokens included where windows do not fit.

    Args:
        dim: Channels C of input and output.
        scan: Name of the scan order, such as ``"h+v_flip+w7+w7_flip"``; see :func:`vmamba.scans.list_scans`.
        sizes: Further arguments of :class:`PathMixer`.
    """

    def __init__(
            self, dim: int, scan: str, device: Any = None, dtype: torch.dtype | None = None, **sizes: Any) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, directions=default_directions(scan), **sizes, **dd)
        self.scan = scan
        self.attention = ChannelAttention(self.d_inner, **dd)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        steps = torch.ops.vmamba.reorder(x, self.scan, H, W, True)
        length = steps.shape[1]
        padded = F.pad(steps, (0, 0, 0, 0, self.d_conv - 1, 0))
        u = padded[:, :length] * self.conv_weight[:, :, 0] + self.conv_bias
        for tap in range(1, self.d_conv):
            u = u + padded[:, tap:tap + length] * self.conv_weight[:, :, tap]
        u = F.silu(u).to(x.dtype)
        y = torch.ops.vmamba.ss2d_scan(
            u, self.project(u), self.dt_weight, self.dt_bias, self.A_log, self.D, "uni", 1, length, None, False)[0]
        y = torch.ops.vmamba.reorder(y.transpose(1, 2).to(x.dtype), self.scan, H, W, False)
        gated = (y * F.silu(z).unsqueeze(2)).transpose(1, 2)
        return self.out_proj(self.attention(gated).sum(1))
