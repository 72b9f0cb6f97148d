"""Operators: one signature each, a plain torch path and (for CUDA) a Triton path; the scans also have a reference."""
from . import _flops  # noqa: F401  (tells torch what the scans count)
from .add_layer_norm import add_layer_norm
from .depthwise_conv_add import depthwise_conv_add
from .depthwise_conv_silu import depthwise_conv_silu
from .mlp import mlp
from .neighborhood import neighborhood_apply, neighborhood_weights
from .reference_mode import ReferenceOperators
from .reorder import reorder
from .selective_scan import selective_scan
from .ss2d_mixer import ss2d_mixer
from .ss2d_scan import ss2d_scan
from .ss2d_scan_norm import ss2d_scan_norm
from .ssd_scan import ssd_scan

__all__ = [
    "ReferenceOperators", "add_layer_norm", "depthwise_conv_add", "depthwise_conv_silu", "mlp",
    "neighborhood_apply", "neighborhood_weights", "reorder", "selective_scan", "ss2d_mixer", "ss2d_scan",
    "ss2d_scan_norm", "ssd_scan",
]
