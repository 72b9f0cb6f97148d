"""A scan order: the sequence in which a state-space model visits the tokens of a grid, as an index table.

An order is pure data, ``K`` rows of token positions, one row per scan direction.  Operators consume it; orders are
made from others by the methods below, or by name (``registry``).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAD", "ScanOrder", "pad_walks"]

PAD = -1
"""Index value of a padding slot: a zero token that takes part in the recurrence, so the state decays there."""


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """K walks over the tokens of a grid.

    Attributes:
        name: Registered name, or a label of the caller's choice.
        size: Grid size in tokens, ``(H, W)``, or more axes; the natural token order is row-major.
        index: ``[K, T]`` int32. ``index[k, t]`` is the natural position of the token that direction ``k`` visits at
            step ``t``; ``-1`` is a padding slot, a zero token that takes part in the recurrence. A direction visits a
            token at most once: an order that comes back to a token walks copies, see :meth:`concatenate`.
        num_tokens: Number of tokens ``L`` in natural order; ``H * W`` unless there are copies or extra tokens.

    Raises:
        ValueError: ``index`` is not such a table.
    """

    name: str
    size: tuple[int, ...]
    index: Tensor
    num_tokens: int

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.index.dtype != torch.int32:
            raise ValueError(
                f"index must be an int32 tensor [K, T], got {self.index.dtype} with shape {list(self.index.shape)}")
        if isinstance(self.index.shape[1], torch.SymInt):  # in a traced graph, where there are no values to look at
            return
        if self.index.numel() and not -1 <= int(self.index.min()) <= int(self.index.max()) < self.num_tokens:
            raise ValueError(f"index must lie in [-1, {self.num_tokens - 1}] for {self.num_tokens} tokens")
        repeated = (self.index != PAD).sum(1) != (self.inverse != PAD).sum(1)
        if repeated.any():
            raise ValueError(
                f"direction {int(repeated.nonzero()[0])} of the order {self.name!r} visits a token twice; "
                "let it walk copies of the grid, see ScanOrder.concatenate")

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

    def reverse(self) -> ScanOrder:
        """Each walk backwards, its padding slots included."""
        return ScanOrder(f"{self.name}_flip", self.size, self.index.flip(1), self.num_tokens)

    def transpose(self) -> ScanOrder:
        """The same walks with rows and columns of the grid exchanged: an order for a ``W x H`` grid.

        Raises:
            ValueError: The tokens are not those of one or several H x W grids.
        """
        self._require_grid("transpose")
        height, width = self.size
        copy, place = self.index // (height * width), self.index % (height * width)
        index = copy * (height * width) + place % width * height + place // width
        return ScanOrder(
            f"{self.name}_t", (width, height), torch.where(self.index == PAD, PAD, index), self.num_tokens)

    def mirror(self, axis: int) -> ScanOrder:
        """The same walks of the mirrored grid: rows upside down (axis 0), or columns from right to left (axis 1).

        Raises:
            ValueError: The tokens are not those of one or several H x W grids.
        """
        self._require_grid("mirror")
        height, width = self.size
        place = self.index % (height * width)
        column = place % width
        shift = (height - 1) * width - 2 * (place - column) if axis == 0 else width - 1 - 2 * column
        return ScanOrder(
            f"{self.name} mirrored", self.size, torch.where(self.index == PAD, PAD, self.index + shift),
            self.num_tokens)

    def with_token(self, position: int | None = None) -> ScanOrder:
        """Splice an extra token, such as a class token, into the natural order and into every walk.

        Args:
            position: Its natural position, and the step at which every direction visits it; None for ``L // 2``, as
                in Vim (Zhu et al., arXiv:2401.09417) and LocalVim, whose reversed paths have it at that step too.

        Raises:
            ValueError: ``position`` is not in [0, L].
        """
        position = self.num_tokens // 2 if position is None else position
        if not 0 <= position <= self.num_tokens:
            raise ValueError(f"position must lie in [0, {self.num_tokens}], got {position}")
        index = self.index + (self.index >= position).int()
        token = torch.full_like(index[:, :1], position)
        index = torch.cat([index[:, :position], token, index[:, position:]], dim=1)
        return ScanOrder(f"{self.name} with a token", self.size, index, self.num_tokens + 1)

    def over_windows(self, size: Sequence[int]) -> ScanOrder:
        """Restrict this walk of a window to the windows of a larger grid: one window after another, row by row.

        The grid is padded at the bottom and at the right to whole windows; slots outside of it are padding.

        Args:
            size: Grid size ``(H, W)``; the size of this order is that of a window.

        Raises:
            ValueError: The tokens of this order are not those of one 2-D window.
        """
        self._require_grid("over_windows", copies=False)
        (height, width), (rows, columns) = size, self.size
        down, across = -(-height // rows), -(-width // columns)
        row = (self.index // columns)[:, None, None] + rows * torch.arange(down).view(1, -1, 1, 1)
        column = (self.index % columns)[:, None, None] + columns * torch.arange(across).view(1, 1, -1, 1)
        inside = (self.index != PAD)[:, None, None] & (row < height) & (column < width)
        index = torch.where(inside, row * width + column, PAD).int().flatten(1)
        return ScanOrder(f"{self.name} over windows", (height, width), index, height * width)

    def lift(self, depth: int, axis: int = 0, fast: bool = False) -> ScanOrder:
        """An order of a grid with one axis more.

        Args:
            depth: Size of the new axis.
            axis: 0 puts the new axis first (frames of a video, ``[T, H, W]``), -1 last (``[X, Y, Z]`` with heights).
            fast: Run along the new axis at each place of the walk; otherwise walk slice after slice.

        Raises:
            ValueError: ``axis`` is not 0 or -1, or the tokens of this order are not those of its grid alone.
        """
        if axis not in (0, -1):
            raise ValueError(f"axis must be 0 or -1, got {axis}")
        tokens = math.prod(self.size)
        if self.num_tokens != tokens:
            raise ValueError(f"lift needs an order of {tokens} tokens (grid {self._grid}), got {self.num_tokens}")
        at, along = (1, tokens) if axis == 0 else (depth, 1)
        place, step = self.index.unsqueeze(2 if fast else 1), torch.arange(depth, dtype=torch.int32) * along
        lifted = place * at + (step if fast else step.unsqueeze(1))
        index = torch.where(place == PAD, PAD, lifted).flatten(1)
        size = (depth, *self.size) if axis == 0 else (*self.size, depth)
        return ScanOrder(f"{self.name} lifted", size, index, tokens * depth)

    @staticmethod
    def stack(orders: Sequence[ScanOrder]) -> ScanOrder:
        """Directions of several orders of the same tokens side by side; shorter walks are padded at their end.

        Raises:
            ValueError: The orders are for grids of different sizes or numbers of tokens.
        """
        first = orders[0]
        for order in orders:
            if (order.size, order.num_tokens) != (first.size, first.num_tokens):
                raise ValueError(
                    f"the order {order.name!r} is for a {order._grid} grid of {order.num_tokens} tokens, but "
                    f"{first.name!r} is for {first._grid} of {first.num_tokens}")
        index = pad_walks([order.index for order in orders])
        return ScanOrder("+".join(order.name for order in orders), first.size, index, first.num_tokens)

    @staticmethod
    def concatenate(orders: Sequence[ScanOrder]) -> ScanOrder:
        """Walk by one order, then, with the state carried on, by the next: one sequence over several token sets.

        The natural order is that of the token sets stacked: tokens of the second order count from the first one's
        ``num_tokens``. Sets may be different maps, or copies of one (give the operator the map repeated and add up
        its outputs over the copies), which is how an order comes back to a token.

        Raises:
            ValueError: The orders have different numbers of directions.
        """
        return _joined(orders, [o.index for o in orders], "then")

    @staticmethod
    def interleave(orders: Sequence[ScanOrder]) -> ScanOrder:
        """Take a step of each order in turn, over token sets stacked as in :meth:`concatenate`.

        Raises:
            ValueError: The orders have different numbers of directions or steps.
        """
        if len({order.length for order in orders}) > 1:
            raise ValueError(f"interleave needs orders of one length, got {[order.length for order in orders]}")
        return _joined(orders, [o.index.unsqueeze(2) for o in orders], "and")

    @property
    def _grid(self) -> str:
        return "x".join(map(str, self.size))

    def _require_grid(self, method: str, copies: bool = True) -> None:
        tokens = math.prod(self.size)
        if len(self.size) != 2 or self.num_tokens % tokens or (self.num_tokens > tokens and not copies):
            raise ValueError(
                f"{method} needs the tokens of an H x W grid, got {self.num_tokens} tokens of a {self._grid} grid")


def _joined(orders: Sequence[ScanOrder], walks: Sequence[Tensor], word: str) -> ScanOrder:
    """One walk of several, ``walks[i]`` [K, T, ...] being that of ``orders[i]``, joined along the last axis."""
    if len({order.num_directions for order in orders}) > 1:
        raise ValueError(
            f"orders that are joined need as many directions each, got {[order.num_directions for order in orders]}")
    offsets = [sum(order.num_tokens for order in orders[:i]) for i in range(len(orders))]
    shifted = [torch.where(walk == PAD, PAD, walk + first) for walk, first in zip(walks, offsets, strict=True)]
    total, first = sum(order.num_tokens for order in orders), orders[0].size
    alike = all(order.size == first for order in orders) and total == len(orders) * math.prod(first)
    size = (len(orders), *first) if alike else (total,)
    name = f" {word} ".join(order.name for order in orders)
    return ScanOrder(name, size, torch.cat(shifted, dim=-1).flatten(1), total)


def pad_walks(walks: Sequence[Tensor]) -> Tensor:
    """Tables [K_i, T_i] of one another's directions -> [sum of K_i, longest T_i], padded at the end."""
    longest = reduce(torch.sym_max, [walk.shape[1] for walk in walks])
    return torch.cat([F.pad(walk, (0, longest - walk.shape[1]), value=PAD) for walk in walks])


def invert_index(index: Tensor, num_tokens: int) -> Tensor:
    """Steps at which tokens are visited: ``index`` [K, T] int32 -> [K, num_tokens] int32, ``-1`` if never."""
    K, T = index.shape
    never = torch.full((K, num_tokens + 1), PAD, dtype=torch.int32, device=index.device)
    slots = torch.where(index == PAD, num_tokens, index).long()
    inverse = never.scatter(1, slots, torch.arange(T, dtype=torch.int32, device=index.device).expand(K, T))
    return inverse[:, :num_tokens].contiguous()
