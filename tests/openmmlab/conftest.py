"""Without the toolboxes (``make openmmlab``) nothing here is collected.

``make test-openmmlab`` fails then, as pytest does when it finds no test.
"""
import importlib.util
import logging

import pytest

INSTALLED = all(importlib.util.find_spec(name) for name in ("mmengine", "mmcv", "mmdet", "mmseg"))
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]


@pytest.fixture(autouse=True)
def _no_logger_keeps_a_closed_stream():
    """mmengine's logger writes to the standard output of the test that first used it, which is closed after that."""
    yield
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)
