"""Change detection on pairs of images of one place: ChangeMamba's three systems over any backbone.

Chen et al., "ChangeMamba: Remote Sensing Change Detection with Spatio-Temporal State Space Model", TGRS 2024,
arXiv:2404.03425. Origin of the weights: https://github.com/ChenHongruixuan/ChangeMamba (Apache-2.0). This
implementation is our own.
"""
from .checkpoint import checkpoint_filter_fn
from .losses import change_losses
from .metrics import ChangeMetrics, create_metrics
from .models import ENCODERS, MambaBCD, MambaBDA, MambaSCD, create_change_model

__all__ = [
    "ENCODERS", "ChangeMetrics", "MambaBCD", "MambaBDA", "MambaSCD", "change_losses", "checkpoint_filter_fn",
    "create_change_model", "create_metrics"]
