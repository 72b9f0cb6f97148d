"""The dispatcher library that holds every operator of the suite, ``torch.ops.vmamba.*``."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vmamba", "DEF")


def new_like(t: Tensor) -> Tensor:
    """Uninitialised tensor of the shape of ``t``: [B, D, L] channels-last in memory where ``t`` is, else contiguous."""
    if _is_channels_last(t):
        return t.new_empty(t.mT.shape).mT
    return t.new_empty(t.shape)


def in_layout_of(like: Tensor, t: Tensor) -> Tensor:
    """``t`` in the layout that :func:`new_like` gives, copied only if it has another."""
    return t.mT.contiguous().mT if _is_channels_last(like) else t.contiguous()


def _is_channels_last(t: Tensor) -> bool:
    return t.ndim == 3 and t.mT.is_contiguous() and not t.is_contiguous()


def pack_gradients(grads: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients as a backward operator returns them: in the argument's dtype and layout, empty for an absent one."""
    like = next(t for t in arguments if t is not None)
    return [
        in_layout_of(t, g.to(t.dtype)) if t is not None and g is not None else like.new_empty(0)
        for g, t in zip(grads, arguments, strict=True)]


def fake_gradients(arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """What :func:`pack_gradients` returns, for the fake implementation."""
    like = next(t for t in arguments if t is not None)
    return [new_like(t) if t is not None else like.new_empty(0) for t in arguments]


def unpack_gradients(grads: Sequence[Tensor], arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients as autograd takes them, None for an absent argument."""
    return [g if t is not None else None for g, t in zip(grads, arguments, strict=True)]
