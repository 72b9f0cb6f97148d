"""Self-supervised pre-training by masked image modelling, after MambaMIM (arXiv:2408.08070), of any backbone here."""
from .masks import draw_visible, masked_patch_loss, visible_at
from .model import MaskedImageModel
from .task import MaskedImageTask
from .toki import TokenInterpolation, interpolate_tokens

__all__ = [
    "MaskedImageModel", "MaskedImageTask", "TokenInterpolation", "draw_visible", "interpolate_tokens",
    "masked_patch_loss", "visible_at",
]
