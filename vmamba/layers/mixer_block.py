"""The usual pre-norm residual block around any mixer."""
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm, LayerScale, Mlp
from torch import Tensor, nn

__all__ = ["MixerBlock"]


class MixerBlock(nn.Module):
    """A mixer, then an MLP, each normed, scaled and added; maps ``[B, H, W, C]`` or tokens ``[B, L, C]``, both ways.

    Args:
        dim: Channels C.
        mixer: From and to what the block takes.
        mlp_ratio: Hidden channels of the MLP as a multiple of C.
        drop_path: Stochastic depth.
        layer_scale: Initial scale of both branches, for each channel; None for none.
        norm_eps: Epsilon of the LayerNorms.
    """

    def __init__(
            self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float, layer_scale: float | None = None,
            norm_eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps, **dd)
        self.mixer = mixer
        self.scale1 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.scale2 = LayerScale(dim, layer_scale, **dd) if layer_scale is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.scale1(self.mixer(self.norm1(x))))
        return x + self.drop_path2(self.scale2(self.mlp(self.norm2(x))))
