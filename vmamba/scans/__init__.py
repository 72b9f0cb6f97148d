"""Scan orders as index tables: which token a scan visits at which step."""
from . import atrous, curves, dimsum, grid, hierarchical, seeded, windowed  # noqa: F401  (registers their orders)
from .continuous import step_moves
from .order import ScanOrder
from .recap import recap_order
from .registry import (
    Route,
    default_directions,
    list_scans,
    register_alias,
    register_numbered_path,
    register_path,
    register_scan,
    scan_length,
    scan_order,
    scan_routes,
    scan_tokens,
)
from .spatiotemporal import VIDEO_SCANS, VIDEO_SCHEDULES, video_order, video_routes, video_schedule
from .voxels import consistent_traverse, hilbert_voxels, morton_voxels

__all__ = [
    "VIDEO_SCANS", "VIDEO_SCHEDULES", "Route", "ScanOrder", "consistent_traverse", "default_directions",
    "hilbert_voxels", "list_scans", "morton_voxels", "recap_order", "register_alias", "register_numbered_path",
    "register_path", "register_scan", "scan_length", "scan_order", "scan_routes", "scan_tokens", "step_moves",
    "video_order", "video_routes", "video_schedule"]
