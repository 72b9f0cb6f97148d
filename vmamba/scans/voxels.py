"""Orders of voxel grids [X, Y, Z], and the curve in the plane that OccMamba lifts to one.

OccMamba (Li et al., arXiv:2408.09859) walks a curve over the places (x, y) and, at each of them, all heights:
``scan_order("u_curve", (X, Y)).lift(Z, axis=-1, fast=True)``.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .curves import morton_codes
from .order import ScanOrder
from .registry import register_path

__all__ = ["consistent_traverse", "hilbert_voxels", "morton_voxels"]


@register_path("u_curve", four=True)
def _u_curve(height: int, width: int) -> Tensor:
    """OccMamba's curve as published: the four quarters in a U, and so on inside each of them, never turned.

    The paper calls it a Hilbert curve. That one turns the first and the last quarter, which makes every step one to a
    neighbour; this one jumps between quarters. Its walk from the far corner is ``u_curve_turn``.
    """
    codes = morton_codes((height, width))
    row, column = codes >> 1 & _COLUMN_BITS, codes & _COLUMN_BITS
    return (row << 1 | (row ^ column)).argsort()  # quarters (0, 0), (0, 1), (1, 1), (1, 0)


_COLUMN_BITS = 0x5555555555555555  # of a code made of the bits of row and column in turn


def _voxel_order(name: str, size: Sequence[int], codes: Tensor) -> ScanOrder:
    """The order of rising codes [X * Y * Z]; voxels of one code keep their natural order."""
    index = codes.argsort(stable=True).int().unsqueeze(0)
    return ScanOrder(name, tuple(size), index, math.prod(size))


def consistent_traverse(size: Sequence[int], axes: str = "xyz", released: bool = False) -> ScanOrder:
    """Point Cloud Mamba's consistent traverse serialization: a snake in three dimensions.

    Zhang et al., "Point Cloud Mamba", arXiv:2403.00762, section 3.2. It runs along the first of ``axes``, turns round
    for each place of the second, and goes back the whole plane for each place of the third.

    Args:
        size: ``(X, Y, Z)``, each at least 1.
        axes: Order of the axes from fast to slow, a permutation of "xyz".
        released: What the published code does instead: it has the greatest coordinates of the second and third axis
            where it needs each voxel's own, so voxels are sorted by the first axis alone (forwards or backwards), in
            natural order among equals. For weights trained with it.

    Returns:
        Order of one direction.

    Raises:
        ValueError: ``axes`` is not a permutation of "xyz".
    """
    if sorted(axes) != ["x", "y", "z"]:
        raise ValueError(f"axes must be a permutation of 'xyz', got {axes!r}")
    places = torch.cartesian_prod(*(torch.arange(extent) for extent in size)).view(-1, 3).unbind(1)
    first, second, third = (places["xyz".index(axis)] for axis in axes)
    n, m, last = first.max() + 1, second.max() + 1, 1
    if released:
        n, m, last = n - 1, m - 1, 0
        second, third = second.max(), third.max()
    line = second * n + torch.where(second % 2 == 0, first, n - last - first)
    codes = third * n * m + torch.where(third % 2 == 0, line, n * m - last - line)
    return _voxel_order(f"consistent traverse {axes}", size, codes)


def morton_voxels(size: Sequence[int]) -> ScanOrder:
    """Z-order of a voxel grid ``(X, Y, Z)``, z fastest, as Point Cloud Mamba has it."""
    return _voxel_order("morton voxels", size, morton_codes(size))


def hilbert_voxels(size: Sequence[int]) -> ScanOrder:
    """Hilbert's curve through a cube, restricted to a voxel grid ``(X, Y, Z)`` inside, as Point Cloud Mamba has it.

    Skilling, "Programming the Hilbert curve", AIP Conference Proceedings 707 (2004). The cube has 2^16 voxels a side;
    how the curve is turned inside of a small grid depends on that. Steps go to neighbours where the curve does not
    leave the grid.
    """
    axes = list(torch.cartesian_prod(*(torch.arange(extent) for extent in size)).view(-1, len(size)).unbind(1))
    for bit in reversed(range(1, 16)):  # undo the turns of the cubes, from the largest on
        below = (1 << bit) - 1
        for i, axis in enumerate(axes):
            upper = (axis >> bit & 1).bool()
            swapped = torch.where(upper, 0, (axes[0] ^ axis) & below)
            axes[i] = axis ^ swapped
            axes[0] = axes[0] ^ torch.where(upper, below, swapped if i else 0)
    for i in range(1, len(axes)):  # Gray code
        axes[i] = axes[i] ^ axes[i - 1]
    parity = torch.zeros_like(axes[0])
    for bit in reversed(range(1, 16)):
        parity ^= torch.where((axes[-1] >> bit & 1).bool(), (1 << bit) - 1, 0)
    codes = torch.zeros_like(axes[0])
    for bit in reversed(range(16)):
        for axis in axes:
            codes = codes << 1 | ((axis ^ parity) >> bit & 1)
    return _voxel_order("hilbert voxels", size, codes)
