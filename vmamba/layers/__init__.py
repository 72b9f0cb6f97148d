"""Modules shared by the model families; channels-last maps [B, H, W, C], or tokens [B, L, C], both ways."""
from .channel_attention import ChannelAttention, SqueezeExcite
from .conv import Conv2dNHWC, ConvNorm
from .norm import RMSNorm
from .patch import ConvDownsample, ConvStem, PatchEmbed, PatchMerging, PatchStem
from .path_mixer import BidirectionalMixer
from .ss2d import SS2D
from .ss2d_variants import SS2DVariant

__all__ = [
    "SS2D", "BidirectionalMixer", "ChannelAttention", "Conv2dNHWC", "ConvDownsample", "ConvNorm", "ConvStem", "PatchEmbed",
    "PatchMerging", "PatchStem", "RMSNorm", "SS2DVariant", "SqueezeExcite",
]
