"""Local scans: window by window.

Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv:2403.09338, section 4.1.
LocalVim and LocalVMamba give each layer four of ``h``, ``v``, ``w2``, ``w7`` and their reverses.  Reversed walks start
with the padding of the last window, and paths of different lengths are padded at their end, as in the published code.
Its inverse of ``v`` is right on square maps only (H and W are not exchanged); ours is the inverse on every map.
"""
from __future__ import annotations

from torch import Tensor

from .registry import register_alias, register_numbered_path, scan_order

__all__: list[str] = []


def _padded(height: int, width: int, window: int) -> int:
    """Tokens of the map padded to whole windows."""
    return -(-height // window) * -(-width // window) * window ** 2


@register_numbered_path("w", length=_padded)
def _windows(height: int, width: int, window: int) -> Tensor:
    """Rows inside windows of ``window`` x ``window`` tokens, windows row by row."""
    if window < 1:
        raise ValueError(f"the window of an order 'w<K>' has K >= 1 tokens a side, got {window}")
    return scan_order("h", (window, window)).over_windows((height, width)).index[0]


register_alias("window4", "w7+w7_t+w7_flip+w7_t_flip")
register_alias("local4", "h+h_flip+w2+w2_flip")
