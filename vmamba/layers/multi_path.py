"""One Mamba mixer along several orders of the tokens, with shared weights.

Chen et al., "RSMamba: Remote Sensing Image Classification with State Space Model", arXiv:2403.19654, section 2.3.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.scans import default_directions

from .path_mixer import PathMixer

__all__ = ["MultiPathMixer"]


class MultiPathMixer(PathMixer):
    """Convolution and scan along K walks of a grid, weighed by their mean tokens and added; ``[B, L, C]`` both ways.

    Arxiv:2403.19654, equations 3 to 6. Projections act on tokens, whose order does not matter to them, so there is one
    for all walks on either side.

    Args:
        dim: Channels C.
        scan: Name of a scan order that visits every token once in each of its directions.
        gate: Weigh the walks by a softmax; else take their mean.
        random: Add a walk through a permutation that is drawn in every forward pass.
        sizes: ``d_state``, ``expand``, ``d_conv`` and ``dt_rank`` as in :class:`PathMixer`.
    """

    def __init__(
            self, dim: int, scan: str, gate: bool, random: bool = False, device: Any = None,
            dtype: torch.dtype | None = None, **sizes: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, directions=1, **sizes, **dd)
        self.scan, self.random = scan, random
        self.paths = default_directions(scan) + int(random)
        self.gated = gate and self.paths > 1
        self.gate: nn.Module = nn.Sequential(
            nn.Linear(self.paths * dim, self.paths, bias=False, **dd), nn.Softmax(dim=-1),
        ) if self.gated else nn.Identity()

    def scan_paths(self, x: Tensor) -> Tensor:
        """``[B, L, K, D] -> [B, L, K, D]``, every walk by itself."""
        B, L, K, D = x.shape
        x = x.transpose(1, 2).reshape(B * K, L, D)
        u = F.silu(self.convolve(x, 0, False)).to(x.dtype)
        y = torch.ops.vmamba.ss2d_scan(
            u, self.project(u.unsqueeze(2)), self.dt_weight, self.dt_bias, self.A_log, self.D, "uni", 1, L, None,
            True)[0]
        return y.to(x.dtype).view(B, K, L, D).transpose(1, 2)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        walks = torch.ops.vmamba.reorder(x, self.scan, H, W, True)
        if self.random:
            order = torch.randperm(x.shape[1], device=x.device)
            y = self.scan_paths(torch.cat([walks, x[:, order].unsqueeze(2)], dim=2))
            back = torch.ops.vmamba.reorder(y[:, :, :-1].contiguous(), self.scan, H, W, False)
            y = torch.cat([back, y[:, order.argsort(), -1:]], dim=2)
        else:
            y = torch.ops.vmamba.reorder(self.scan_paths(walks).contiguous(), self.scan, H, W, False)
        y = y * F.silu(z).unsqueeze(2)
        if not self.gated:
            return self.out_proj(y.mean(2))
        weights = self.gate(self.out_proj(y.mean(1)).flatten(1))
        return self.out_proj((y * weights.unsqueeze(1).unsqueeze(-1)).sum(2))
