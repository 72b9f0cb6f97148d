"""Residual block with a convolution as position encoding before each half."""
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .conv import DepthwiseConvAdd
from .mlp import Mlp
from .norm import LayerNorm

__all__ = ["CPEBlock"]


class CPEBlock(nn.Module):
    """Depthwise convolution, mixer, depthwise convolution, MLP, each added; ``[B, H, W, C] -> [B, H, W, C]``.

    The convolutions are the conditional position encoding of Chu et al., arXiv:2102.10882. MLLA (arXiv:2405.16605) and
    VSSD (arXiv:2407.18559) put their mixers into this block.

    Args:
        dim: Channels C.
        mixer: Maps to maps of the same shape.
        mlp_ratio: Hidden channels of the MLP as a multiple of C.
        drop_path: Stochastic depth.
        norm_eps: Epsilon of the LayerNorms before mixer and MLP.
    """

    def __init__(
            self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float, norm_eps: float = 1e-5,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.cpe1 = DepthwiseConvAdd(dim, **dd)
        self.norm1 = LayerNorm(dim, eps=norm_eps, **dd)
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.cpe2 = DepthwiseConvAdd(dim, **dd)
        self.norm2 = LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        x = self.cpe2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))
