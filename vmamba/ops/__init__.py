"""Scan operators: one signature, a readable reference, a plain torch path and (for CUDA) a Triton path each."""
from .reorder import reorder
from .selective_scan import selective_scan
from .ss2d_scan import ss2d_scan
from .ss2d_scan_norm import ss2d_scan_norm
from .ssd_scan import ssd_scan

__all__ = ["reorder", "selective_scan", "ss2d_scan", "ss2d_scan_norm", "ssd_scan"]
