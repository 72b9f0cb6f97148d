"""SS2D over two resolutions: one scan of the full map, three of the map at half resolution.

Shi et al., "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", arXiv:2405.14174, section 3.3.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .channel_attention import SqueezeExcite
from .conv import Conv2dNHWC
from .ss2d import SS2D

__all__ = ["MultiScaleSS2D"]


class MultiScaleSS2D(SS2D):
    """Scan the full map by rows, and a half-resolution map by the other three directions of the cross-scan.

    The three walks of the half map are one sequence, whose state is carried from walk to walk; the full map has
    parameters of its own. Both results are normalised by the same LayerNorm, the half one summed over its walks and
    interpolated, their sum scaled by squeeze and excitation, and gated. The sequences have 7 / 4 of the map's tokens
    together, where the cross-scan has 4 times as many.

    Args:
        dim: Channels C of input and output.
        ssm_ratio: Inner channels D as a multiple of C.
        conv_bias: Whether the two depthwise convolutions have biases.
        gate: Multiply by ``silu(z)``, z a second half of the input projection.
        norm_eps: Epsilon of the LayerNorm over the scans.
    """

    def __init__(
            self, dim: int, ssm_ratio: float = 2.0, conv_bias: bool = True, gate: bool = True, norm_eps: float = 1e-5,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        # two sets of scan parameters: 0 for the half map, 1 for the full one
        super().__init__(
            dim, ssm_ratio=ssm_ratio, conv_bias=conv_bias, scan="uni", directions=2, gate=gate, norm_eps=norm_eps, **dd)
        self.half_conv = Conv2dNHWC(
            self.d_inner, self.d_inner, 7, stride=2, padding=3, groups=self.d_inner, bias=conv_bias, **dd)
        self.se = SqueezeExcite(self.d_inner, bias=False, **dd)

    def _scan(self, x: Tensor, k: int, order: str, copies: int) -> Tensor:
        """Normalised scan of ``copies`` of a map by parameter set k: ``[B, H, W, D] -> [B, copies, H, W, D]``."""
        B, H, W, D = x.shape
        tokens = x.reshape(B, H * W, D)
        proj = F.linear(tokens, self.x_proj.weight.chunk(2)[k])
        if copies > 1:
            tokens, proj = tokens.repeat(1, copies, 1), proj.repeat(1, copies, 1)
        y = torch.ops.vmamba.ss2d_scan_norm(
            tokens, proj.unsqueeze(2), self.dt_weight[k:k + 1], self.dt_bias[k:k + 1], self.A_log[k:k + 1],
            self.D[k:k + 1], order, H, W, None, self.out_norm.weight, self.out_norm.bias, None, self.norm_eps)
        return y.view(B, copies, H, W, D)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        _, H, W, _ = x.shape
        x = self.in_proj(x)
        z = x
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        half = self._scan(F.silu(self.half_conv(x)), 0, "ms_half", 3).sum(1)
        half = F.interpolate(half.permute(0, 3, 1, 2), size=(H, W), mode="bilinear").permute(0, 2, 3, 1)
        full = self._scan(self.conv(x), 1, "uni", 1).squeeze(1)
        y = self.se(full + half)
        if self.gated:
            y = y * F.silu(z)
        return self.out_proj(y)
