"""Every operator test allocates poisoned memory, so that an element nobody wrote shows as NaN."""
import pytest
import torch


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory(monkeypatch):
    """Fill torch.empty and its relatives with NaN (documented by torch for exactly this use), for every call anew."""
    monkeypatch.setattr("vmamba.ops._workspace.KEPT_BYTES", 0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
