"""Modules shared by the model families; all take and return channels-last maps [B, H, W, C]."""
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem
from .ss2d import SS2D
from .ss2d_variants import SS2DVariant

__all__ = ["SS2D", "ConvDownsample", "ConvStem", "PatchMerging", "PatchStem", "SS2DVariant"]
