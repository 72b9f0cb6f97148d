"""SS2D whose directions are weighed against each other, over windows as well as whole rows and columns.

Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv:2403.09338, section 4.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .channel_attention import ChannelAttention
from .ss2d import SS2D

__all__ = ["LocalSS2D"]


class LocalSS2D(SS2D):
    """SS2D with channel attention on each direction before they are added; gated; ``[B, H, W, C]`` both ways.

    Args:
        dim: Channels C of input and output.
        scan: Name of the scan order, such as ``"h+v_flip+w7+w7_flip"``; see :func:`vmamba.scans.list_scans`.
        norm_eps: Epsilon of the LayerNorms.
        ss2d: Further arguments of :class:`SS2D`.
    """

    def __init__(
            self, dim: int, scan: str, norm_eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None,
            **ss2d: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, scan=scan, gate=True, norm_eps=norm_eps, **ss2d, **dd)
        self.attention = ChannelAttention(self.d_inner, norm_eps=norm_eps, **dd)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, dim=-1)
        tokens = self.conv(x).reshape(B, H * W, self.d_inner)
        proj = self.x_proj(tokens).view(B, H * W, self.directions, self.dt_rank + 2 * self.d_state)
        y = torch.ops.vmamba.ss2d_scan(
            tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, self.scan, H, W, None, False,
        )[0].to(tokens.dtype)
        y = self.out_norm(self.attention(y).sum(1)).view(z.shape)
        return self.out_proj(y * F.silu(z))
