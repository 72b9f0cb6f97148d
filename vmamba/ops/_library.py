"""The dispatcher library that holds every operator of the suite, ``torch.ops.vmamba.*``."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vmamba", "DEF")


def pack_gradients(grads: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients as a backward operator returns them: in the argument's dtype, contiguous, empty for an absent one."""
    like = next(t for t in arguments if t is not None)
    return [
        g.to(t.dtype).contiguous() if t is not None and g is not None else like.new_empty(0)
        for g, t in zip(grads, arguments, strict=True)]


def fake_gradients(arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """What :func:`pack_gradients` returns, for the fake implementation."""
    like = next(t for t in arguments if t is not None)
    return [t.new_empty(t.shape) if t is not None else like.new_empty(0) for t in arguments]


def unpack_gradients(grads: Sequence[Tensor], arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients as autograd takes them, None for an absent argument."""
    return [g if t is not None else None for g, t in zip(grads, arguments, strict=True)]
