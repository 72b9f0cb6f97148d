"""Without the toolboxes (``make openmmlab``) nothing here is collected.

``make test-openmmlab`` fails then, as pytest does when it finds no test.
"""
import importlib.util

INSTALLED = all(importlib.util.find_spec(name) for name in ("mmengine", "mmcv", "mmdet", "mmseg"))
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]
