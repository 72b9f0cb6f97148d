"""Scan orders by name.

A name stands for an order of any H x W grid.  Beyond the registered names there are

* ``NAME_flip``: every walk backwards;
* ``NAME_t``: the walks of the transposed grid, rows and columns exchanged;
* ``NAME_turn``: the walks of the grid turned by 180 degrees;
* ``NAME_token``: the walks with a class token in the middle, see :meth:`ScanOrder.with_token`;
* ``NAME+NAME+...``: their directions side by side, the shorter walks padded at their end.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .order import ScanOrder, pad_walks

__all__ = [
    "Route", "default_directions", "list_scans", "register_alias", "register_path", "register_routes",
    "register_scan", "scan_length", "scan_order", "scan_routes", "scan_tokens"]

Extent = Callable[[int, int], int]
"""A number of steps for a height and width, which may be symbols of a traced graph."""


class Route(NamedTuple):
    """A direction that needs no table: row by row or column by column, forwards or backwards."""

    column: bool
    reverse: bool


def _all_tokens(height: int, width: int) -> int:
    return height * width


@dataclass(frozen=True)
class _Scan:
    """Registry entry: how to make an order of a given size and number of directions."""

    directions: int
    build: Callable[[int, int, int], Tensor]
    length: Extent = _all_tokens
    copies: int = 1
    extra: int = 0  # tokens that are none of the grid's
    routes: Callable[[int], tuple[Route, ...]] | None = None


_SCANS: dict[str, _Scan] = {}
_ALIASES: dict[str, str] = {}
_NUMBERED: dict[str, Callable[[int], _Scan]] = {}

_Entry = TypeVar("_Entry")


def _register(registry: dict[str, _Entry], name: str, entry: _Entry) -> None:
    """Add or replace an entry; what was made of an earlier one of that name, or of others that use it, is forgotten."""
    registry[name] = entry
    _derived.cache_clear()
    _cached_order.cache_clear()


def register_scan(
        name: str, directions: int, length: Extent = _all_tokens, copies: int = 1,
) -> Callable[[Callable[[int, int, int], Tensor]], Callable]:
    """Register a table builder ``f(height, width, directions) -> index [K, T]`` under ``name``.

    Args:
        name: Name a model passes as ``scan=``.
        directions: Default number of directions K.
        length: Steps T for a height and width, which may be symbols of a traced graph; other than every token once
            for orders with padding or that leave tokens out.
        copies: Copies of the grid that are walked, ``L = copies * H * W``; several for an order that comes back to a
            token, see :meth:`ScanOrder.concatenate`.
    """

    def add(build: Callable[[int, int, int], Tensor]) -> Callable[[int, int, int], Tensor]:
        _register(_SCANS, name, _Scan(directions, build, length, copies))
        return build

    return add


def register_path(
        name: str, four: bool = False) -> Callable[[Callable[[int, int], Tensor]], Callable[[int, int], Tensor]]:
    """Register a walk over every token, ``f(height, width) -> positions [H * W]``, as an order of one direction.

    Args:
        name: Name of the order.
        four: Also register ``name4``: the walk and that of the transposed grid, both ways.
    """

    def add(build: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
        _register(_SCANS, name, _Scan(1, lambda h, w, _: build(h, w).to(torch.int32).unsqueeze(0)))
        if four:
            register_alias(f"{name}4", f"{name}+{name}_t+{name}_flip+{name}_t_flip")
        return build

    return add


def register_numbered_path(
        name: str, length: Callable[[int, int, int], int] | None = None,
) -> Callable[[Callable[[int, int, int], Tensor]], Callable[[int, int, int], Tensor]]:
    """Register walks ``f(height, width, number) -> positions [T]`` under all names ``name<number>``.

    Args:
        name: The part of the names before the number.
        length: Steps T for a height, width and number, other than every token once.
    """

    def add(build: Callable[[int, int, int], Tensor]) -> Callable[[int, int, int], Tensor]:
        def numbered(number: int) -> _Scan:
            extent: Extent = _all_tokens if length is None else lambda h, w: length(h, w, number)
            return _Scan(1, lambda h, w, _: build(h, w, number).to(torch.int32).unsqueeze(0), extent)

        _register(_NUMBERED, name, numbered)
        return build

    return add


def register_alias(name: str, meaning: str) -> None:
    """Register ``name`` for an order that can be said in other names, such as ``"h+h_flip+w2+w2_flip"``."""
    _register(_ALIASES, name, meaning)


def register_routes(name: str, directions: int, routes: Callable[[int], tuple[Route, ...]]) -> None:
    """Register an order made of rows and columns only, which operators walk by index arithmetic."""

    def build(height: int, width: int, k: int) -> Tensor:
        return torch.stack([_route_index(height, width, route) for route in routes(k)])

    _register(_SCANS, name, _Scan(directions, build, routes=routes))


def _route_index(height: int, width: int, route: Route) -> Tensor:
    """Positions [H * W] visited by one route, in the order of the visit."""
    grid = torch.arange(height * width, dtype=torch.int32).view(height, width)
    walk = (grid.t() if route.column else grid).reshape(-1)
    return walk.flip(0) if route.reverse else walk


def list_scans() -> list[str]:
    """Names of the registered scan orders, each of which can be varied and combined with others."""
    return sorted({*_SCANS, *_ALIASES})


def _lookup(name: str) -> _Scan:
    return _SCANS[name] if name in _SCANS else _derived(name)


@lru_cache(maxsize=256)
def _derived(name: str) -> _Scan:
    """What a name means that is not that of a table."""
    if name in _ALIASES:
        return _lookup(_ALIASES[name])
    if "+" in name:
        return _side_by_side(name.split("+"))
    if name.endswith("_flip"):
        return _reversed(name.removesuffix("_flip"))
    if name.endswith("_turn"):
        return _turned(name.removesuffix("_turn"))
    if name.endswith("_token"):
        return _with_token(name.removesuffix("_token"))
    if name.endswith("_t"):
        return _transposed(name.removesuffix("_t"))
    numbered = re.fullmatch(r"(\D+)(\d+)", name)
    if numbered and numbered[1] in _NUMBERED:
        return _NUMBERED[numbered[1]](int(numbered[2]))
    hint = near_or_known(name, list_scans(), [f"{family}<number>" for family in sorted(_NUMBERED)])
    raise ValueError(f"unknown scan order {name!r}; {hint}")


def near_or_known(name: str, known: Sequence[str], also: Sequence[str] = ()) -> str:
    """What an error says after an unknown name: the names near it, or else all of them and ``also``."""
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known orders: {', '.join([*known, *also])}"


# Tables of these are made of other tables, which scan_order keeps.
def _reversed(name: str) -> _Scan:
    return replace(
        _lookup(name), build=lambda h, w, directions: scan_order(name, (h, w), directions).reverse().index, routes=None)


def _turned(name: str) -> _Scan:
    def build(height: int, width: int, directions: int) -> Tensor:
        return scan_order(name, (height, width), directions).mirror(0).mirror(1).index

    return replace(_lookup(name), build=build, routes=None)


def _with_token(name: str) -> _Scan:
    scan = _lookup(name)
    return replace(
        scan, build=lambda h, w, directions: scan_order(name, (h, w), directions).with_token().index,
        length=lambda h, w: scan.length(h, w) + 1, extra=scan.extra + 1, routes=None)


def _transposed(name: str) -> _Scan:
    scan = _lookup(name)
    return replace(
        scan, build=lambda h, w, directions: scan_order(name, (w, h), directions).transpose().index,
        length=lambda h, w: scan.length(w, h), routes=None)


def _side_by_side(names: list[str]) -> _Scan:
    scans = [_lookup(name) for name in names]
    if len({scan.copies for scan in scans}) > 1:
        raise ValueError(f"the orders of {'+'.join(names)!r} walk different numbers of copies of the grid")
    if len({scan.extra for scan in scans}) > 1:
        raise ValueError(f"the orders of {'+'.join(names)!r} have different numbers of extra tokens")
    return _Scan(
        sum(scan.directions for scan in scans),
        lambda h, w, _: pad_walks([scan_order(name, (h, w)).index for name in names]),
        lambda h, w: reduce(torch.sym_max, [scan.length(h, w) for scan in scans]),
        scans[0].copies, scans[0].extra)


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


def scan_tokens(name: str, height: int, width: int) -> int:
    """Tokens L that ``name`` walks on a grid; height and width may be symbols of a traced graph.

    Raises:
        ValueError: ``name`` is not registered.
    """
    scan = _lookup(name)
    return scan.copies * height * width + scan.extra


@lru_cache(maxsize=256)
def _cached_order(name: str, size: tuple[int, int], directions: int, device: torch.device) -> ScanOrder:
    # Tables are built outside any tracing, inference mode or default device, so that a cached one serves every caller.
    with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"):
        index = _lookup(name).build(*size, directions).contiguous()
        if index.shape[0] != directions:
            plural = "s" if index.shape[0] > 1 else ""
            raise ValueError(f"the order {name!r} has {index.shape[0]} direction{plural}, got {directions}")
        if index.shape[1] != scan_length(name, *size):
            raise ValueError(
                f"the order {name!r} was registered for {scan_length(name, *size)} steps at size {size}, "
                f"but its table has {index.shape[1]}")
        return ScanOrder(name, size, index.to(device), scan_tokens(name, *size))


def scan_order(
        name: str, size: Sequence[int], directions: int | None = None, device: torch.device | str = "cpu") -> ScanOrder:
    """The order ``name`` on an H x W grid.

    Args:
        name: A name of :func:`list_scans`; ``NAME_flip`` for its walks backwards, ``NAME_t`` for those of the
            transposed grid, ``NAME_turn`` for those of the grid turned by 180 degrees, ``NAME_token`` for those with a
            class token in the middle, or several names joined by ``+`` for their directions side by side.
        size: Grid size ``(H, W)`` in tokens, each at least 1. Symbols of a traced graph give a table that the graph
            computes, where the order is one of torch's operations on whole tensors.
        directions: Number of directions K; None for the order's own.
        device: Where the table lives. Tables are cached per (name, size, directions, device).

    Raises:
        ValueError: Unknown name, a size that is not two positive integers, or a K the order does not have.
    """
    directions = default_directions(name) if directions is None else directions
    if any(isinstance(s, torch.SymInt) for s in size):
        height, width = size
        with torch.device(device):
            index = _lookup(name).build(height, width, directions).contiguous()
        return ScanOrder(name, (height, width), index, scan_tokens(name, height, width))
    if len(size) != 2 or any(int(s) < 1 for s in size):
        raise ValueError(f"size must be two positive integers (H, W), got {tuple(size)}")
    return _cached_order(name, (int(size[0]), int(size[1])), directions, torch.device(device))
