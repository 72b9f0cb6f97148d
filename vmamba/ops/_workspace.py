"""Scratch memory of the plain torch path, kept from call to call.

A scan works in a few tensors of some megabytes.  Allocated for every call, the operating system hands out fresh zeroed
pages each time, which takes longer than the arithmetic of a whole forward pass; so each thread keeps its own.
"""
from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

KEPT_BYTES = 64 << 20
"""Largest workspace that is kept; a larger request gets memory of its own."""


class _Kept(threading.local):
    memory: Tensor | None = None


_KEPT = _Kept()


def workspace(count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """``count`` uninitialised tensors, valid until the next call in this thread; never to be returned to callers."""
    numel = math.prod(shape)
    size = count * numel * dtype.itemsize
    if device.type != "cpu" or size > KEPT_BYTES:
        return [torch.empty(shape, dtype=dtype, device=device) for _ in range(count)]
    if _KEPT.memory is None or _KEPT.memory.numel() < size:
        with torch.inference_mode(False):  # so that it can be written to in any mode later
            _KEPT.memory = torch.empty(size, dtype=torch.uint8)
    flat = _KEPT.memory[:size].view(dtype)
    return [flat[i * numel:(i + 1) * numel].view(shape) for i in range(count)]
