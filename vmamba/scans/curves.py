"""Curves through a grid: Hilbert, Morton, diagonals, zigzag, spiral."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .registry import register_alias, register_path

__all__ = ["morton_codes"]


@register_path("hilbert")
def _hilbert(height: int, width: int) -> Tensor:
    """Hilbert's curve (1891), continued to rectangles of any sides: every step goes to a neighbour.

    It runs from the corner (0, 0) to the next corner along the longer side, unless that side is odd and the other
    even: a walk of neighbours through all tokens alternates their colours on a chessboard, and those two corners then
    have the wrong ones, so it runs to the corner along the shorter side.
    """
    along_rows = width >= height
    along, across = (width, height) if along_rows else (height, width)
    if along % 2 == 1 and across % 2 == 0:
        along_rows = not along_rows
    row, column = _Side(1, width), _Side(width, height)
    lines = _hilbert_lines(0, row, column) if along_rows else _hilbert_lines(0, column, row)
    return torch.tensor([at for line in lines for at in line])


# not the transposed curve, which on a grid that is not square is the curve itself
register_alias("hilbert4", "hilbert+hilbert_turn+hilbert_flip+hilbert_turn_flip")


class _Side(NamedTuple):
    """Side of a rectangle of tokens: difference of the positions of neighbours, and number of tokens."""

    step: int
    tokens: int


def _hilbert_lines(start: int, along: _Side, across: _Side) -> Iterator[range]:
    """The straight lines of the curve through a rectangle, as ranges of positions.

    It begins at the corner ``start`` and ends at the other end of the side ``along``. Steps to neighbours can do that
    unless ``along`` is odd and ``across`` even, and all rectangles that this one is cut into are of the possible kinds.
    """
    (step, n), (side, m) = along, across
    if m == 1:
        yield range(start, start + n * step, step)
    elif 2 * n > 3 * m:  # long: two parts in line, the first of even length
        half = n // 2 + n // 2 % 2
        yield from _hilbert_lines(start, _Side(step, half), across)
        yield from _hilbert_lines(start + half * step, _Side(step, n - half), across)
    else:  # a U: up one arm, along the bottom, and back; arms are of even length but in a block of 2 x 2
        arm, half = m // 2 + m // 2 % 2 if m > 2 else 1, n // 2
        yield from _hilbert_lines(start, _Side(side, arm), _Side(step, half))
        yield from _hilbert_lines(start + arm * side, along, _Side(side, m - arm))
        end = start + (n - 1) * step
        yield from _hilbert_lines(end + (arm - 1) * side, _Side(-side, arm), _Side(-step, n - half))


@register_path("morton", four=True)
def _morton(height: int, width: int) -> Tensor:
    """Morton's Z-order (1966): quarters, quarters of quarters, ..., each in the order of reading."""
    return morton_codes((height, width)).argsort()


def morton_codes(size: Sequence[int]) -> Tensor:
    """Places on the Z-order curve of the tokens of a grid of any number of axes: int64 of the grid's tokens, natural.

    A code is made of the bits of the coordinates in turn, the last axis lowest.
    """
    codes = torch.zeros(1, dtype=torch.int64)
    for axis, extent in enumerate(size):
        place, spread = torch.arange(extent), torch.zeros(extent, dtype=torch.int64)
        for bit in range(max(extent - 1, 0).bit_length()):
            spread |= (place >> bit & 1) << (bit * len(size) + len(size) - 1 - axis)
        codes = (codes.unsqueeze(1) | spread).flatten()
    return codes


def _rows_and_columns(height: int, width: int) -> tuple[Tensor, Tensor]:
    position = torch.arange(height * width)
    return position // width, position % width


@register_path("diagonal")
def _diagonal(height: int, width: int) -> Tensor:
    """Diagonals from the corner (0, 0) on, each from its right upper to its left lower end."""
    row, column = _rows_and_columns(height, width)
    return ((row + column) * height + row).argsort()


@register_path("antidiagonal")
def _antidiagonal(height: int, width: int) -> Tensor:
    """The mirror image: diagonals from the right upper corner on, each from its left upper to its right lower end."""
    row, column = _rows_and_columns(height, width)
    return ((row + width - 1 - column) * height + row).argsort()


register_alias("diagonal4", "diagonal+antidiagonal+diagonal_flip+antidiagonal_flip")


@register_path("zigzag", four=True)
def _zigzag(height: int, width: int) -> Tensor:
    """Diagonals in alternating directions, as JPEG reads its coefficients (ITU-T T.81, figure 5)."""
    row, column = _rows_and_columns(height, width)
    diagonal = row + column
    return (2 * height * diagonal + torch.where(diagonal % 2 == 0, -row, row)).argsort()


@register_path("spiral", four=True)
def _spiral(height: int, width: int) -> Tensor:
    """Clockwise from the corner (0, 0) to the middle; every step goes to a neighbour."""
    row, column = _rows_and_columns(height, width)
    low, right = height - 1 - row, width - 1 - column
    ring = torch.stack([row, column, low, right]).amin(0)
    across, down = width - 1 - 2 * ring, height - 1 - 2 * ring
    turn = torch.where(
        row == ring, column - ring, torch.where(
            right == ring, across + row - ring, torch.where(
                low == ring, across + down + right - ring, 2 * across + down + low - ring)))
    return (ring * 2 * (height + width) + turn).argsort()
