"""Linear attention in the place of the selective scan, on channels-last maps.

Han et al., "Demystify Mamba in Vision: A Linear Attention Perspective", NeurIPS 2024, arXiv:2405.16605.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import rotary
from .conv import Conv2dNHWC

__all__ = ["LinearAttention", "MambaLinearAttention"]


class LinearAttention(nn.Module):
    """Multi-head linear attention with rotary and local position encoding; ``[B, H, W, C] -> [B, H, W, C]``.

    ``y = q' (k'^T v) / (L (q . mean(k) + eps)) + conv(v)``, with ``q, k = elu(.) + 1``, q' and k' turned by their
    positions, and v the input itself. Arxiv:2405.16605, equation 3 and section 5.

    Args:
        dim: Channels C, a multiple of 4.
        num_heads: Heads, which divide C.
    """

    def __init__(self, dim: int, num_heads: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, **dd)
        self.lepe = Conv2dNHWC(dim, dim, 3, padding=1, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        shape = (B, H * W, self.num_heads, C // self.num_heads)
        q, k = (F.elu(rotary.widen(self.qk(x))) + 1).chunk(2, dim=-1)
        cos, sin = rotary.axial_angles(x, H, W, C, False)
        # the mean over the tokens goes to the keys, so that no sum leaves the range of float16
        q_turned = rotary.rotate(q, cos, sin).reshape(shape).to(x.dtype)
        k_turned = (rotary.rotate(k, cos, sin) / (H * W)).reshape(shape).to(x.dtype)
        normaliser = (q * k.mean(dim=(1, 2), keepdim=True)).reshape(shape).sum(-1, keepdim=True) + 1e-6
        state = torch.einsum("blhd,blhe->bhde", k_turned, x.reshape(shape))
        y = torch.einsum("blhd,bhde->blhe", q_turned, state) / normaliser
        return y.to(x.dtype).reshape(B, H, W, C) + self.lepe(x)


class MambaLinearAttention(nn.Module):
    """Mamba's block around linear attention: project, convolve, attend, gate; ``[B, H, W, C] -> [B, H, W, C]``.

    Arxiv:2405.16605, figure 3.

    Args:
        dim: Channels C, a multiple of 4.
        num_heads: Heads, which divide C.
    """

    def __init__(self, dim: int, num_heads: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(dim, dim, **dd)
        self.gate_proj = nn.Linear(dim, dim, **dd)
        self.conv = Conv2dNHWC(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.attn = LinearAttention(dim, num_heads, **dd)
        self.out_proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.act(self.gate_proj(x))
        x = self.act(self.conv(self.in_proj(x)))
        return self.out_proj(self.attn(x) * gate)
