import threading

import pytest
import torch

from tests.support.scans import gradients, ss2d_arguments
from vmamba.ops import _workspace, ss2d_scan
from vmamba.ops._workspace import workspace
from vmamba.scans import scan_order

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _keep(monkeypatch, _poison_uninitialised_memory):
    monkeypatch.setattr(_workspace, "KEPT_BYTES", 1 << 20)
    monkeypatch.setattr(_workspace._KEPT, "memory", None)


def test_memory_is_kept_and_split():
    first = workspace(2, (3, 4), torch.float32, CPU)
    again = workspace(1, (4, 3), torch.float32, CPU)
    assert first[0].data_ptr() == again[0].data_ptr()
    assert first[1].data_ptr() == first[0].data_ptr() + 3 * 4 * 4


def test_large_requests_are_not_kept():
    workspace(1, (1 << 20,), torch.float32, CPU)
    assert _workspace._KEPT.memory is None


def test_every_thread_has_its_own():
    mine, theirs = workspace(1, (8,), torch.float32, CPU)[0], []
    thread = threading.Thread(target=lambda: theirs.extend(workspace(1, (8,), torch.float32, CPU)))
    thread.start()
    thread.join()
    assert theirs[0].data_ptr() != mine.data_ptr()


def test_training_after_inference_mode_and_results_stay():
    arguments, order = ss2d_arguments(), scan_order("cross", (3, 5))
    with torch.inference_mode():
        first = ss2d_scan(*arguments, order)
    y = ss2d_scan(*arguments, order)
    before = y.detach().clone()
    grads = gradients(y, arguments)
    kept = [g.clone() for g in grads]
    ss2d_scan(*ss2d_arguments(seed=7), order)
    assert torch.equal(first, before)
    assert torch.equal(y, before)
    assert all(torch.equal(g, k) for g, k in zip(grads, kept, strict=True))
