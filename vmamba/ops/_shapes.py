"""Argument checks of the scan operators: one clear ValueError naming the argument, what it has and what it needs."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vmamba.scans import scan_tokens

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(x: Tensor) -> torch.dtype:
    """State and accumulation dtype: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def ss2d_output_dtype(x: Tensor) -> torch.dtype:
    """Output dtype of ``ss2d_scan``: that of x, but float32 for float16, whose range the merged sum can exceed."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def check_tensor(name: str, tensor: Tensor, shape: Sequence, letters: str, like: Tensor) -> None:
    """Raise ValueError unless ``tensor`` has the wanted shape, a floating dtype and the device of ``like``.

    Args:
        name: Argument name for the message.
        tensor: The argument.
        shape: Wanted sizes; None matches anything.
        letters: The shape in the documentation's letters, e.g. ``"[B, L, D]"``.
        like: Tensor whose device is wanted.
    """
    if tensor.ndim != len(shape) or any(w is not None and s != w for s, w in zip(tensor.shape, shape, strict=True)):
        need = ", ".join("*" if s is None else str(s) for s in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}, but needs {letters} = [{need}]")
    if tensor.dtype not in FLOATS:
        raise ValueError(f"{name} has dtype {tensor.dtype}, but needs one of float16, bfloat16, float32, float64")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but needs to be on {like.device} like the first argument")


def check_selective_scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, initial_state: Tensor | None,
) -> None:
    """Check the arguments of ``selective_scan`` with B and C already grouped, [B, G, N, L]."""
    check_tensor("u", u, (None, None, None), "[B, D, L]", u)
    batch, channels, length = u.shape
    check_tensor("delta", delta, (batch, channels, length), "[B, D, L]", u)
    check_tensor("A", A, (channels, None), "[D, N]", u)
    states = A.shape[1]
    check_tensor("B", B, (batch, None, states, length), "[B, G, N, L]", u)
    groups = B.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"B has {groups} groups, but needs a number G that divides D = {channels}")
    check_tensor("C", C, (batch, groups, states, length), "[B, G, N, L]", u)
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_tensor(name, vector, (channels,), "[D]", u)
    if z is not None:
        check_tensor("z", z, (batch, channels, length), "[B, D, L]", u)
    if initial_state is not None:
        check_tensor("initial_state", initial_state, (batch, channels, states), "[B, D, N]", u)
    if length < 1 or states < 1:
        raise ValueError(f"u needs L >= 1 tokens and A needs N >= 1 states, got L = {length}, N = {states}")


def check_tokens(length: int, order: str, height: int, width: int) -> None:
    """Raise ValueError unless x has as many tokens as the named order on a height x width grid visits."""
    tokens = scan_tokens(order, height, width)
    if tokens != length:
        copies = "" if tokens == height * width else f"{tokens // (height * width)} copies of "
        raise ValueError(f"x has L = {length} tokens, but the order is for {copies}{height} x {width} = {tokens}")


def check_ss2d_scan(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None,
) -> None:
    """Check the arguments of ``ss2d_scan``; ``index`` is None for a named order on a height x width grid."""
    own = x.ndim == 4  # activations of its own for each direction
    check_tensor("x", x, (None,) * (4 if own else 3), "[B, L, D] (or [B, L, K, D])", x)
    batch, length, channels = x.shape[0], x.shape[1], x.shape[-1]
    check_tensor("dt_weight", dt_weight, (x.shape[2] if own else None, channels, None), "[K, D, R]", x)
    directions, _, rank = dt_weight.shape
    check_tensor("A_log", A_log, (directions, channels, None), "[K, D, N]", x)
    states = A_log.shape[2]
    width_full = rank + 2 * states
    # C omitted: the state is the output
    no_readout = states == 1 and proj.ndim == 4 and proj.shape[3] == rank + 1 and not own
    letters = "[B, L, K, R + 2N] (or [B, L, K, R + 1] without C when N = 1 and x is [B, L, D])"
    check_tensor("proj", proj, (batch, length, directions, rank + 1 if no_readout else width_full), letters, x)
    for name, matrix in (("dt_bias", dt_bias), ("D_skip", D_skip)):
        if matrix is not None:
            check_tensor(name, matrix, (directions, channels), "[K, D]", x)
    if length < 1:
        raise ValueError("x needs at least one token, got L = 0")
    if index is None:
        check_tokens(length, order, height, width)
    elif index.ndim != 2 or index.shape[0] != directions or index.dtype != torch.int32:
        raise ValueError(
            f"order has an index of shape {list(index.shape)} and dtype {index.dtype}, but needs [K, T] int32 "
            f"with K = {directions} directions")
