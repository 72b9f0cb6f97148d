"""Where there is no GPU, the kernels run in Triton's interpreter. Every output they allocate starts as NaN."""

import pytest
import torch


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Fill what the kernels allocate with NaN, so that an element nobody writes cannot pass."""
    from vmamba_kernels import _launch

    def poisoned(*args, **kwargs):
        return torch.empty(*args, **kwargs).fill_(float("nan"))

    def poisoned_like(t, dtype=None):
        return poisoned(t.shape, dtype=dtype or t.dtype, device=t.device)

    monkeypatch.setattr(_launch, "empty", poisoned)
    monkeypatch.setattr(_launch, "empty_like", poisoned_like)
