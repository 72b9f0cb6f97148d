"""Orders with a time axis: clips [T, H, W], and pairs of images of one place.

Li et al., "VideoMamba: State Space Model for Efficient Video Understanding", arXiv:2403.06977, figure 4, and
Chen et al., "ChangeMamba: Remote Sensing Change Detection with Spatio-Temporal State Space Model", arXiv:2404.03425.

A pair's natural order is that of two copies of the map: token ``p`` of the second date is ``H * W + p``.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .order import ScanOrder
from .registry import Route, near_or_known, register_scan, scan_order

__all__ = ["VIDEO_SCANS", "VIDEO_SCHEDULES", "video_order", "video_routes", "video_schedule"]

_FRAMES, _PLACES = Route(column=False, reverse=False), Route(column=True, reverse=False)
_FRAMES_BACK, _PLACES_BACK = Route(column=False, reverse=True), Route(column=True, reverse=True)

# On the grid of T rows (frames) and H * W columns (places) spatial-first walks rows and temporal-first columns. Walks
# forwards come first, which `bidi` on sequences takes for granted.
VIDEO_SCANS: dict[str, tuple[Route, ...]] = {
    "spatial_first": (_FRAMES,),
    "temporal_first": (_PLACES,),
    "spatial_first_bidi": (_FRAMES, _FRAMES_BACK),
    "temporal_first_bidi": (_PLACES, _PLACES_BACK),
    "spatiotemporal_v1": (_FRAMES, _PLACES_BACK),
    "spatiotemporal_v2": (_FRAMES, _PLACES, _FRAMES_BACK, _PLACES_BACK),
}
"""The directions of each order of clips.

``spatial_first`` walks frame after frame, ``temporal_first`` each place through all frames, ``_bidi`` both ways.
``spatiotemporal_v1`` is the mixture at the cost of two directions: the paper says half of either, not which half; here
frames forwards and places backwards. ``spatiotemporal_v2`` is the mixture of all four.
"""

VIDEO_SCHEDULES = ("spatial_then_temporal", "temporal_then_spatial", "alternating")
"""Mixtures over the blocks of a model: ``spatial_first_bidi`` in the first half of them and ``temporal_first_bidi`` in
the second, the other way round, or the two in turn, spatial first."""


def video_schedule(name: str, depth: int) -> list[str]:
    """The order of clips of each block of a model.

    Args:
        name: One of :data:`VIDEO_SCANS`, for all blocks, or of :data:`VIDEO_SCHEDULES`.
        depth: Number of blocks; of an odd one, the first half has one block more.

    Raises:
        ValueError: ``name`` is in neither.
    """
    if name in VIDEO_SCANS:
        return [name] * depth
    if name not in VIDEO_SCHEDULES:
        raise ValueError(f"unknown order of clips {name!r}; {near_or_known(name, [*VIDEO_SCANS, *VIDEO_SCHEDULES])}")
    first, second = "spatial_first_bidi", "temporal_first_bidi"
    if name == "alternating":
        return [(first, second)[i % 2] for i in range(depth)]
    if name == "temporal_then_spatial":
        first, second = second, first
    half = (depth + 1) // 2
    return [first] * half + [second] * (depth - half)


def video_routes(name: str) -> tuple[Route, ...]:
    """The directions of an order of clips as rows (spatial-first) and columns (temporal-first) of a T x HW grid.

    Raises:
        ValueError: ``name`` is not in :data:`VIDEO_SCANS`.
    """
    if name not in VIDEO_SCANS:
        raise ValueError(f"unknown order of clips {name!r}; {near_or_known(name, list(VIDEO_SCANS))}")
    return VIDEO_SCANS[name]


def video_order(name: str, size: Sequence[int], class_token: bool = False) -> ScanOrder:
    """The order ``name`` of a clip.

    Args:
        name: One of :data:`VIDEO_SCANS`.
        size: Grid size ``(T, H, W)`` in tokens.
        class_token: Put a class token at the front of the natural order; the first step of each walk forwards, and
            the last of each backwards.

    Raises:
        ValueError: ``name`` is unknown, or ``size`` is not three positive integers.
    """
    routes = video_routes(name)
    if len(size) != 3 or any(int(s) < 1 for s in size):
        raise ValueError(f"size must be three positive integers (T, H, W), got {tuple(size)}")
    walks = []
    for route in routes:
        walk = scan_order("h", size[1:]).lift(size[0], fast=route.column)
        walk = walk.with_token(0) if class_token else walk
        walks.append(walk.reverse() if route.reverse else walk)
    stacked = ScanOrder.stack(walks)
    return ScanOrder(name, stacked.size, stacked.index, stacked.num_tokens)


def _both(height: int, width: int) -> int:
    return 2 * height * width


def _register_arrangement(name: str, place: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """Register the cross-scan of both dates laid side by side as one H x 2W map.

    Args:
        name: Name of the order.
        place: Columns of that map and the width W -> which date they show, and which of its columns.
    """

    @register_scan(name, 4, length=_both, copies=2)
    def build(height: int, width: int, directions: int) -> Tensor:
        walk = scan_order("cross", (height, 2 * width), directions).index.long()
        row, column = walk // (2 * width), walk % (2 * width)
        date, column = place(column, width)
        return (date * height * width + row * width + column).to(torch.int32)


# ChangeMamba's arrangements. In "sequential" the second date lies to the right of the first, so only the directions
# along columns walk date after date; those along rows alternate row by row. In "cross" columns of the dates alternate,
# so directions along rows alternate token by token, and those along columns column by column.  Its third arrangement,
# "parallel", lays the dates on one another as channels: that is the order "cross" of one map.
_register_arrangement("bitemporal_sequential", lambda column, width: (column // width, column % width))
_register_arrangement("bitemporal_cross", lambda column, width: (column % 2, column // 2))


def _register_tokenwise(name: str, join: Callable[[Sequence[ScanOrder]], ScanOrder]) -> None:
    """Register rows and columns of the dates joined token by token, both ways."""

    @register_scan(name, 4, length=_both, copies=2)
    def build(height: int, width: int, directions: int) -> Tensor:
        joined = [join([scan_order(walk, (height, width))] * 2) for walk in ("h", "v")]
        return ScanOrder.stack([*joined, *(order.reverse() for order in joined)]).index


# What the names of the arrangements say, in all four directions: date after date, and token after token.
_register_tokenwise("bitemporal_sequential_tokens", ScanOrder.concatenate)
_register_tokenwise("bitemporal_cross_tokens", ScanOrder.interleave)
