"""Which implementation of a scan runs."""
from __future__ import annotations

import importlib.util
import os
from functools import cache

import torch
from torch import Tensor

from ._shapes import compute_dtype

BACKENDS = ("auto", "reference", "torch", "triton")


@cache
def has_triton_kernels() -> bool:
    """Whether Triton and the kernels package are installed; looks without importing either."""
    return all(importlib.util.find_spec(name) is not None for name in ("triton", "vmamba_kernels"))


def resolve_backend(backend: str, tensor: Tensor) -> str:
    """Name of the implementation that will run on ``tensor``: "reference", "torch" or "triton".

    "auto" is Triton for CUDA tensors where it is installed, and the plain torch path otherwise and for float64.

    Raises:
        ValueError: ``backend`` is unknown, or named one that cannot run here; nothing falls back silently.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, but needs one of {', '.join(map(repr, BACKENDS))}")
    if backend == "auto":
        on_gpu = tensor.device.type == "cuda" and tensor.dtype != torch.float64
        return "triton" if on_gpu and has_triton_kernels() else "torch"
    if backend == "triton":
        if not has_triton_kernels():
            raise ValueError("backend 'triton' was named, but Triton or its kernels are not installed")
        if tensor.dtype == torch.float64:
            raise ValueError("backend 'triton' was named, but it takes no float64; the backend 'torch' does")
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if tensor.device.type not in ("cuda", "meta") and not interpreted:
            raise ValueError(f"backend 'triton' was named, but the tensors are on {tensor.device} and it needs CUDA")
    return backend


def saved_states_dtype(x: Tensor, backend: str) -> torch.dtype:
    """Dtype of the states that a scan of ``x`` saves: the kernels keep those of bfloat16 in bfloat16."""
    half = x.dtype == torch.bfloat16 and resolve_backend(backend, x) == "triton"
    return torch.bfloat16 if half else compute_dtype(x)
