"""Every operator test allocates poisoned memory, so that an element nobody wrote shows as NaN."""
import pytest
import torch


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory():
    """Fill torch.empty and its relatives with NaN (documented by torch for exactly this use)."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
