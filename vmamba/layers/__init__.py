"""Modules shared by the model families; all take and return channels-last maps [B, H, W, C]."""
from .channel_attention import ChannelAttention, SqueezeExcite
from .conv import Conv2dNHWC, ConvNorm
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem
from .ss2d import SS2D
from .ss2d_variants import SS2DVariant

__all__ = [
    "SS2D", "ChannelAttention", "Conv2dNHWC", "ConvDownsample", "ConvNorm", "ConvStem", "PatchMerging", "PatchStem",
    "SS2DVariant", "SqueezeExcite",
]
