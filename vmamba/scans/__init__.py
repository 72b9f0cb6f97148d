"""Scan orders as index tables: which token a scan visits at which step."""
from . import grid  # noqa: F401  (registers its orders)
from .order import Route, ScanOrder, list_scans, register_scan, scan_order, scan_routes

__all__ = ["Route", "ScanOrder", "list_scans", "register_scan", "scan_order", "scan_routes"]
