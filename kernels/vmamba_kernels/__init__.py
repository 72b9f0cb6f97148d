"""Triton kernels for vision state-space models. Importing the package imports no Triton; using a name from it does."""

import importlib

_HOME = {
    "DepthwiseConvGradients": "depthwise_conv",
    "depthwise_conv_add_backward": "depthwise_conv",
    "depthwise_conv_add_forward": "depthwise_conv",
    "depthwise_conv_silu_backward": "depthwise_conv",
    "depthwise_conv_silu_forward": "depthwise_conv",
    "gelu_backward": "gelu",
    "AddNormGradients": "merge_norm",
    "add_norm_backward": "merge_norm",
    "add_norm_forward": "merge_norm",
    "SelectiveScanGradients": "selective_scan",
    "SelectiveScanSaved": "selective_scan",
    "selective_scan_backward": "selective_scan",
    "selective_scan_forward": "selective_scan",
    "neighborhood_apply_backward": "neighborhood",
    "neighborhood_apply_forward": "neighborhood",
    "neighborhood_weights_backward": "neighborhood",
    "neighborhood_weights_forward": "neighborhood",
    "MergeNormGradients": "merge_norm",
    "merge_norm_backward": "merge_norm",
    "merge_norm_forward": "merge_norm",
    "Sums": "_sums",
    "SSDGradients": "ssd",
    "ssd_backward": "ssd",
    "ssd_forward": "ssd",
    "SS2DGradients": "ss2d",
    "ss2d_backward": "ss2d",
    "ss2d_forward": "ss2d",
}

__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        globals()[name] = found = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
