"""Modules shared by the model families; channels-last maps [B, H, W, C], or tokens [B, L, C], both ways."""
from .attentive_ssm import AttentiveGlobal, AttentiveSSM
from .channel_attention import ChannelAttention, SqueezeExcite
from .channel_scan import ChannelScan
from .continuous import ContinuousMixer
from .conv import Conv2dNHWC, ConvNorm, DepthwiseConvAdd, DepthwiseConvSiLU
from .cpe_block import CPEBlock
from .linear_attention import LinearAttention, MambaLinearAttention
from .local_ss2d import LocalSS2D
from .mixer_block import MixerBlock
from .mlp import Mlp
from .multi_path import MultiPathMixer
from .multi_scale import MultiScaleSS2D
from .norm import LayerNorm, RMSNorm
from .patch import ConvDownsample, ConvStem, InvertedDownsample, PatchEmbed, PatchMerging, PatchStem, ResidualStem
from .path_mixer import BidirectionalMixer, LocalPathMixer
from .split_mixer import SplitMixer
from .ss2d import SS2D
from .ss2d_variants import SS2DVariant
from .ssd import SSD2D, NonCausalSSD
from .state_fusion import StateFusionSS2D
from .support_query import SupportQueryScan
from .video_mixer import VideoMixer
from .window import from_windows, to_windows

__all__ = [
    "SS2D", "SSD2D", "AttentiveGlobal", "AttentiveSSM", "BidirectionalMixer", "CPEBlock", "ChannelAttention",
    "ChannelScan", "ContinuousMixer", "Conv2dNHWC", "ConvDownsample", "ConvNorm", "ConvStem", "DepthwiseConvAdd",
    "DepthwiseConvSiLU", "InvertedDownsample", "LayerNorm", "LinearAttention", "LocalPathMixer", "LocalSS2D",
    "MambaLinearAttention", "MixerBlock", "Mlp", "MultiPathMixer", "MultiScaleSS2D", "NonCausalSSD", "PatchEmbed",
    "PatchMerging", "PatchStem", "RMSNorm", "ResidualStem", "SS2DVariant", "SplitMixer", "SqueezeExcite",
    "StateFusionSS2D", "SupportQueryScan", "VideoMixer", "from_windows", "to_windows",
]
