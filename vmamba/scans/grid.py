"""Row and column orders on a 2-D grid: the scans of VMamba and its ablations.

Liu et al., "VMamba: Visual State Space Model", arXiv:2401.10166, section 4.2 (2D-Selective-Scan).
"""
from __future__ import annotations

from .registry import Route, register_alias, register_routes

__all__: list[str] = []

_ROW, _COLUMN = Route(column=False, reverse=False), Route(column=True, reverse=False)
_ROW_BACK, _COLUMN_BACK = Route(column=False, reverse=True), Route(column=True, reverse=True)


def _uni(directions: int) -> tuple[Route, ...]:
    """Row-major, the same in every direction."""
    return (_ROW,) * directions


def _bidi(directions: int) -> tuple[Route, ...]:
    """Row-major: the first half of the directions forwards, the second half backwards."""
    if directions % 2:
        raise ValueError(f"the order 'bidi' needs an even number of directions, got {directions}")
    return (_ROW,) * (directions // 2) + (_ROW_BACK,) * (directions // 2)


def _cross(directions: int) -> tuple[Route, ...]:
    """Rows, columns, rows backwards, columns backwards: VMamba's cross-scan."""
    if directions != 4:
        raise ValueError(f"the order 'cross' has 4 directions, got {directions}")
    return (_ROW, _COLUMN, _ROW_BACK, _COLUMN_BACK)


register_routes("h", 1, lambda directions: (_ROW,))
register_routes("v", 1, lambda directions: (_COLUMN,))
register_routes("uni", 1, _uni)
register_routes("bidi", 2, _bidi)
register_routes("cross", 4, _cross)
# The walks of VMamba's cascaded scan (the ablation v052dc), side by side over one map. As published they are two passes
# with a state of its own for each line, the columns over what the rows gave, which no table can say.
register_alias("cascade", "h+h_flip+v+v_flip")
