"""Masked image modelling: an encoder of the visible patches, tokens in place of the masked ones, a light decoder."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vmamba.layers import SS2D, Conv2dNHWC, LayerNorm, MixerBlock

from .encoders import masked_encoder
from .masks import from_patches, visible_at
from .toki import TokenInterpolation

__all__ = ["MASK_TOKENS", "ConvBlock", "Decoder", "LearnedToken", "MaskedImageModel"]

MASK_TOKENS = ("toki", "learned")


class LearnedToken(nn.Module):
    """Puts one learned vector wherever a map has no token.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(dim))
        trunc_normal_(self.token, std=0.02)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """[B, *grid, C] and what of it is visible, [B, *grid] bool -> the map, filled."""
        return torch.where(visible.unsqueeze(-1), features, self.token.to(features.dtype))


class ConvBlock(nn.Module):
    """Residual 3x3 convolution with norm and GELU, ``[B, H, W, C] -> [B, H, W, C]``.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = Conv2dNHWC(dim, dim, 3, padding=1)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.norm(self.conv(x)))


class Decoder(nn.Module):
    """From the coarsest map to the finest at a small width, then one linear layer to the pixels of each cell.

    The maps are added to what comes from below. A convolution follows at each resolution, as in MambaMIM's decoder; on
    the coarsest map, blocks with a 2-D scan, so that visible cells reach all masked ones.

    Args:
        channels: Channels of the maps, finest first.
        out_chans: Channels of the images.
        stride: Pixels that a cell of the finest map stands for.
        dim: Width.
        depth: Blocks with a scan.
    """

    def __init__(
            self, channels: Sequence[int], out_chans: int, stride: int, dim: int, depth: int) -> None:
        super().__init__()
        self.stride = stride
        self.laterals = nn.ModuleList(nn.Sequential(LayerNorm(c), nn.Linear(c, dim)) for c in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(MixerBlock(dim, SS2D(dim), mlp_ratio=2.0, drop_path=0.0) for _ in range(depth)))
            if i == len(channels) - 1 else ConvBlock(dim) for i in range(len(channels)))
        self.norm = LayerNorm(dim)
        self.pixels = nn.Linear(dim, out_chans * stride * stride)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``[B, H_i, W_i, C_i]``, finest first -> images ``[B, out_chans, H, W]``."""
        x: Tensor | None = None
        for features, lateral, blocks in reversed(list(zip(maps, self.laterals, self.blocks, strict=True))):
            y = lateral(features)
            if x is not None:
                size = [y.shape[1], y.shape[2]]
                y = y + F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest").permute(0, 2, 3, 1)
            x = blocks(y.contiguous())
        return from_patches(self.pixels(self.norm(x)), self.stride)


class MaskedImageModel(nn.Module):
    """Predicts the pixels of masked patches from the visible ones.

    Tang et al., "MambaMIM", arXiv:2408.08070, on images and with any backbone of this suite: masks agree at all
    resolutions, and on the coarsest map, tokens of masked cells are interpolated (TOKI). Other maps have a learned
    token, as there. Maps whose cells are larger than a patch have no part in it.

    Args:
        model: A timm model of this suite, built with ``num_classes=0``.
        mask_size: Side of the patches in pixels; None for what a cell of the coarsest map stands for.
        mask_token: "toki", or "learned" for a learned token there as well.
        decoder_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder with a scan.

    Attributes:
        mask_size: Side of the patches in pixels.
        multiple: What height and width of the images have to be a multiple of.

    Raises:
        TypeError: The model cannot be masked.
        ValueError: ``mask_size`` does not fit the model's maps, or ``mask_token`` is neither.
    """

    def __init__(
            self, model: Any, mask_size: int | None = None, mask_token: str = "toki", decoder_dim: int = 128,
            decoder_depth: int = 1,
    ) -> None:
        super().__init__()
        if mask_token not in MASK_TOKENS:
            raise ValueError(f"mask_token is {mask_token!r}, but needs one of {', '.join(map(repr, MASK_TOKENS))}")
        self.encoder = masked_encoder(model)
        strides = self.encoder.strides
        self.mask_size = strides[-1] if mask_size is None else mask_size
        if any(self.mask_size % stride and stride % self.mask_size for stride in strides) or (
                self.mask_size < strides[0]):
            raise ValueError(f"patches of {self.mask_size} pixels do not fit maps at strides "
                             f"{', '.join(map(str, strides))}: give one of these, or a multiple of the last")
        self.multiple = max(self.mask_size, strides[-1])
        self.encoder.leave_out(self.mask_size)
        channels = self.encoder.channels
        self.fill = nn.ModuleList(
            TokenInterpolation(c) if i == len(channels) - 1 and mask_token == "toki" else LearnedToken(c)
            for i, c in enumerate(channels))
        self.decoder = Decoder(channels, model.in_chans, strides[0], decoder_dim, decoder_depth)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond timm's rule: the encoder's own, and the skip of the scans."""
        own = {f"encoder.model.{name}" for name in self.encoder.model.no_weight_decay()}
        return own | {name for name, _ in self.named_parameters() if name.endswith(".mixer.D")}

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of images [B, C, H, W].

        Raises:
            ValueError: Height or width is no multiple of ``multiple``.
        """
        height, width = images.shape[2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(f"images of {height}x{width} do not divide into cells of {self.multiple} pixels: "
                             f"height and width need to be multiples of {self.multiple}")
        return height // self.mask_size, width // self.mask_size

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Images, and which of their patches are visible -> the pixels of all patches.

        Args:
            images: [B, in_chans, H, W]. Masked pixels are not looked at.
            visible: [B, rows, columns] bool.

        Returns:
            [B, in_chans, H, W], in the normalised values of :func:`masked_patch_loss`.
        """
        maps = self.encoder(images, visible)
        return self.decoder([fill(features, visible_at(visible, (features.shape[1], features.shape[2])))
                             for fill, features in zip(self.fill, maps, strict=True)])
