"""A scan that a model ran: its arguments, where its tokens are on the image, and its directions step by step."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import ScanOrder

__all__ = ["Scan", "Walk", "to_places"]


class Walk(NamedTuple):
    """One direction of a scan, step by step, in float64.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t`` and ``y_t = <C_t, h_t> + skip u_t``, of B images, T steps, D
    channels and N states.

    Attributes:
        u: Activations [B, T, D].
        delta: Step sizes [B, T, D], after bias and softplus.
        A: Decay rates [D, N], negative.
        B: Input matrix [B, T, N].
        C: Output matrix [B, T, N]; ones where the state itself is the output.
        skip: Skip weights [D], or None.
        places: Place on the map of each step [T]: row-major, h * w for the class token, -1 for padding.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor | None
    places: Tensor


@dataclass(frozen=True)
class Scan:
    """A scan that a layer ran, as arguments of :func:`vmamba.ops.ss2d_scan` with ``merge=None``, and its output.

    Shape letters as there: B images, L tokens of the operator, K directions, D channels. Windows and paths that a model
    puts into the batch are directions here, so each belongs to one image.

    Attributes:
        layer: Name of the module that ran it.
        size: Rows h and columns w of the map.
        class_token: Whether there is a class token, at place h * w.
        places: Place on the map of each token of each direction [K, L]: row-major, -1 for padding.
        windows: Whether the directions are the windows of one direction.
        order: How the directions walk their tokens.
        x: What is scanned, as the operator got it: a tensor of the graph.
        y: What the scan gave, as the operator gives it with its directions apart: a tensor of the graph.
        arrange_x: From the layout of ``x`` to [B, L, D], or [B, L, K, D] where directions have their own.
        arrange_y: From the layout of ``y`` to [B, K, L, D].
        proj: [B, L, K, R + 2N], or [B, L, K, R + 1] without C.
        dt_weight: [K, D, R].
        dt_bias: [K, D], or None.
        A_log: [K, D, N].
        D_skip: [K, D], or None.
    """

    layer: str
    size: tuple[int, int]
    class_token: bool
    places: Tensor
    windows: bool
    order: ScanOrder
    x: Tensor
    y: Tensor
    arrange_x: Callable[[Tensor], Tensor]
    arrange_y: Callable[[Tensor], Tensor]
    proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor | None
    A_log: Tensor
    D_skip: Tensor | None

    @property
    def directions(self) -> int:
        """Number of directions K."""
        return self.order.num_directions

    def input_map(self, values: Tensor) -> Tensor:
        """Values in the layout of ``x`` -> [B, h * w (+ 1), D], added up over directions that have their own."""
        values = self.arrange_x(values)
        if values.ndim == 3:
            return to_places(values, self.places[0], self.count)
        return self._scatter(values.transpose(1, 2), self.places)

    def output_map(self, values: Tensor) -> Tensor:
        """Values in the layout of ``y`` -> [B, h * w (+ 1), D], added up over the directions."""
        return self._scatter(self.arrange_y(values), self.places)

    @property
    def count(self) -> int:
        """Number of places, h * w and the class token's."""
        return self.size[0] * self.size[1] + int(self.class_token)

    def _scatter(self, values: Tensor, places: Tensor) -> Tensor:
        return to_places(values.flatten(1, 2), places.flatten(), self.count)

    def walk(self, k: int) -> Walk:
        """Direction k step by step, in float64; equations of :func:`vmamba.ops.ss2d_scan`."""
        index = self.order.index[k].to(self.x.device).long()
        rank, states = self.dt_weight.shape[2], self.A_log.shape[2]
        x = self.arrange_x(self.x)
        u = _take(x if x.ndim == 3 else x[:, :, k], index)
        p = _take(self.proj[:, :, k], index)
        delta = p[..., :rank] @ self.dt_weight[k].double().t()
        if self.dt_bias is not None:
            delta = delta + self.dt_bias[k].double()
        B = p[..., rank:rank + states]
        C = p[..., rank + states:] if p.shape[-1] > rank + states else torch.ones_like(B)
        skip = self.D_skip[k].double() if self.D_skip is not None else None
        places = torch.where(index < 0, -1, self.places[k].gather(0, index.clamp(min=0)))
        return Walk(u, F.softplus(delta), -self.A_log[k].double().exp(), B, C, skip, places)


def to_places(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Values [B, L, D] of tokens at their places [L]: [B, count, D].

    Those of one place are added, those of none (-1) left out.
    """
    rows = torch.where(places < 0, count, places)
    return values.new_zeros(len(values), count + 1, values.shape[-1]).index_add(1, rows, values)[:, :count]


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` [B, L, C] along L in float64; -1 takes zeros."""
    return x[:, index.clamp(min=0)].double() * (index >= 0).unsqueeze(-1)
