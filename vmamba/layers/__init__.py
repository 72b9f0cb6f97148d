"""Modules shared by the model families; all take and return channels-last maps [B, H, W, C]."""
from .patch import ConvDownsample, ConvStem, PatchMerging, PatchStem
from .ss2d import SS2D

__all__ = ["SS2D", "ConvDownsample", "ConvStem", "PatchMerging", "PatchStem"]
