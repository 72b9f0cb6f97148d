"""Scan orders: the sequence in which a state-space model visits the tokens of a grid.

An order is pure data: ``K`` rows of token positions, one row per scan direction.  Operators consume it, models name
it, and adding a published scan means registering one small function that builds the table.
"""
from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Route", "ScanOrder", "list_scans", "register_scan", "scan_order", "scan_routes"]

PAD = -1
"""Index value of a padding slot: a zero token that takes part in the recurrence, so the state decays there."""


class Route(NamedTuple):
    """A direction that needs no table: row by row or column by column, forwards or backwards."""

    column: bool
    reverse: bool


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """K walks over the tokens of a grid.

    Attributes:
        name: Registered name, or a label of the caller's choice.
        size: Grid size in tokens, ``(H, W)``; the natural token order is row-major.
        index: ``[K, T]`` int32. ``index[k, t]`` is the natural position of the token that direction ``k`` visits at
            step ``t``; ``-1`` is a padding slot, a zero token that takes part in the recurrence. A direction visits a
            token at most once.
        num_tokens: Number of tokens ``L`` in natural order; ``H * W`` unless extra tokens were spliced in.
    """

    name: str
    size: tuple[int, ...]
    index: Tensor
    num_tokens: int

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.index.dtype != torch.int32:
            raise ValueError(
                f"index must be an int32 tensor [K, T], got {self.index.dtype} with shape {list(self.index.shape)}")
        if self.index.numel() and not -1 <= int(self.index.min()) <= int(self.index.max()) < self.num_tokens:
            raise ValueError(f"index must lie in [-1, {self.num_tokens - 1}] for {self.num_tokens} tokens")

    @property
    def num_directions(self) -> int:
        """Number of scan directions K."""
        return self.index.shape[0]

    @property
    def length(self) -> int:
        """Number of steps T of each direction, padding slots included."""
        return self.index.shape[1]

    @cached_property
    def inverse(self) -> Tensor:
        """``[K, L]`` int32: the step at which direction ``k`` visits token ``l``, ``-1`` where it never does."""
        with torch.inference_mode(False):  # cached: a later training step may save it for its backward
            return invert_index(self.index, self.num_tokens)

    @cached_property
    def has_padding(self) -> bool:
        """Whether any slot is padding."""
        return bool((self.index == PAD).any())

    @cached_property
    def covers(self) -> bool:
        """Whether every direction visits every token."""
        return bool((self.inverse != PAD).all())


def invert_index(index: Tensor, num_tokens: int) -> Tensor:
    """Steps at which tokens are visited: ``index`` [K, T] int32 -> [K, num_tokens] int32, ``-1`` if never."""
    K, T = index.shape
    inverse = torch.full((K, num_tokens + 1), PAD, dtype=torch.int32, device=index.device)
    slots = torch.where(index == PAD, num_tokens, index).long()
    inverse.scatter_(1, slots, torch.arange(T, dtype=torch.int32, device=index.device).expand(K, T))
    return inverse[:, :num_tokens].contiguous()


@dataclass(frozen=True)
class _Scan:
    """Registry entry: how to make an order of a given size and number of directions."""

    directions: int
    build: Callable[[int, int, int], Tensor]
    length: Callable[[int, int], int]
    routes: Callable[[int], tuple[Route, ...]] | None = None


_SCANS: dict[str, _Scan] = {}


def _all_tokens(height: int, width: int) -> int:
    return height * width


def register_scan(
        name: str, directions: int, length: Callable[[int, int], int] = _all_tokens,
) -> Callable[[Callable[[int, int, int], Tensor]], Callable]:
    """Register a table builder ``f(height, width, directions) -> index [K, T]`` under ``name``.

    Args:
        name: Name a model passes as ``scan=``.
        directions: Default number of directions K.
        length: Steps T for a height and width, which may be symbols of a traced graph; other than every token once
            for orders with padding or that leave tokens out.
    """

    def add(build: Callable[[int, int, int], Tensor]) -> Callable[[int, int, int], Tensor]:
        _SCANS[name] = _Scan(directions, build, length)
        return build

    return add


def register_routes(name: str, directions: int, routes: Callable[[int], tuple[Route, ...]]) -> None:
    """Register an order made of rows and columns only, which operators walk by index arithmetic."""

    def build(height: int, width: int, k: int) -> Tensor:
        return torch.stack([_route_index(height, width, route) for route in routes(k)])

    _SCANS[name] = _Scan(directions, build, _all_tokens, routes)


def _route_index(height: int, width: int, route: Route) -> Tensor:
    """Positions [H * W] visited by one route, in the order of the visit."""
    grid = torch.arange(height * width, dtype=torch.int32).view(height, width)
    walk = (grid.t() if route.column else grid).reshape(-1)
    return walk.flip(0) if route.reverse else walk


def list_scans() -> list[str]:
    """Names of all registered scan orders."""
    return sorted(_SCANS)


def _lookup(name: str) -> _Scan:
    if name not in _SCANS:
        near = difflib.get_close_matches(name, _SCANS, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known orders: {', '.join(list_scans())}"
        raise ValueError(f"unknown scan order {name!r}; {hint}")
    return _SCANS[name]


def default_directions(name: str) -> int:
    """Number of directions K that ``name`` has when the caller does not ask for another.

    Raises:
        ValueError: ``name`` is not registered.
    """
    return _lookup(name).directions


def scan_routes(name: str, directions: int) -> tuple[Route, ...] | None:
    """The directions of ``name`` as rows and columns, or None where only a table describes them.

    Raises:
        ValueError: ``name`` is not registered or has no version with that many directions.
    """
    scan = _lookup(name)
    return scan.routes(directions) if scan.routes is not None else None


def scan_length(name: str, height: int, width: int) -> int:
    """Steps T of each direction of ``name`` on a grid; height and width may be symbols of a traced graph.

    Raises:
        ValueError: ``name`` is not registered.
    """
    return _lookup(name).length(height, width)


@lru_cache(maxsize=256)
def _cached_order(name: str, size: tuple[int, int], directions: int, device: torch.device) -> ScanOrder:
    # Tables are built outside any tracing or inference mode, so that a cached one can be saved for backward later.
    with torch.inference_mode(False):
        index = _lookup(name).build(*size, directions).contiguous()
        if index.shape[1] != scan_length(name, *size):
            raise ValueError(
                f"the order {name!r} was registered for {scan_length(name, *size)} steps at size {size}, "
                f"but its table has {index.shape[1]}")
        return ScanOrder(name, size, index.to(device), size[0] * size[1])


def scan_order(
        name: str, size: Sequence[int], directions: int | None = None, device: torch.device | str = "cpu") -> ScanOrder:
    """The registered order ``name`` on an H x W grid.

    Args:
        name: A name of :func:`list_scans`.
        size: Grid size ``(H, W)`` in tokens, each at least 1.
        directions: Number of directions K; None for the order's own.
        device: Where the table lives. Tables are cached per (name, size, directions, device).

    Raises:
        ValueError: Unknown name, a size that is not two positive integers, or a K the order does not have.
    """
    if len(size) != 2 or any(int(s) < 1 for s in size):
        raise ValueError(f"size must be two positive integers (H, W), got {tuple(size)}")
    directions = default_directions(name) if directions is None else directions
    return _cached_order(name, (int(size[0]), int(size[1])), directions, torch.device(device))
