"""The operators of the suite, written in PyTorch's own for graphs that leave it.

What depends on the size of an image is computed in the graph, the tables of the scan orders included. The scan stays,
``torch.ops.vmamba.ss2d_scan`` with its table as an argument: each format has a loop of its own for it.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vmamba.ops import _torch_neighborhood
from vmamba.ops._shapes import compute_dtype
from vmamba.ops.ssd_scan import ssd_as_ss2d
from vmamba.scans import ScanOrder, scan_order, scan_routes, step_moves

__all__ = ["InTorch"]


class InTorch(nn.Module):
    """A model whose operators are replaced while it is traced for inference.

    Args:
        model: Images [B, C, H, W] -> logits.
        walks: Also replace the scan orders by the tables they stand for; else scans stay wholly what they are.
    """

    def __init__(self, model: nn.Module, walks: bool) -> None:
        super().__init__()
        self.model, self.walks = model, walks

    def forward(self, x: Tensor) -> Tensor:
        with _Replacing(FUSED | WALKS if self.walks else FUSED):
            return self.model(x)


class _Replacing(TorchFunctionMode):
    """Calls functions in the place of operators; remembers the tables of orders, which many blocks share."""

    def __init__(self, functions: Mapping[str, Callable]) -> None:
        super().__init__()
        self.functions = TORCHS | {getattr(torch.ops.vmamba, name): function for name, function in functions.items()}
        self.orders: dict[tuple, ScanOrder] = {}
        self.tables: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        function = self.functions.get(getattr(func, "overloadpacket", func))
        if function is None:
            return func(*args, **(kwargs or {}))
        with self:
            result = function(self, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is None else result

    def order(self, name: str, height: int, width: int, directions: int | None, like: Tensor) -> ScanOrder:
        """The order on a grid that may be made of symbols."""
        key = (name, str(height), str(width), directions, like.device)
        if key not in self.orders:
            self.orders[key] = scan_order(name, (height, width), directions, like.device)
        return self.orders[key]

    def windows(self, x: Tensor, window: int, dilated: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Of each position of x [B, H, W, n, D] the places, distances and existence of its neighbours, [H W, K K]."""
        key = (str(x.shape[1]), str(x.shape[2]), window, dilated, x.device)
        if key not in self.tables:
            rows, columns = (_torch_neighborhood.windows(extent, window, dilated, x.device) for extent in x.shape[1:3])
            places, distances, valid = (
                (row[:, None, :, None], column[None, :, None, :]) for row, column in zip(rows, columns, strict=True))
            place, distance, there = (t.flatten(2).flatten(0, 1) for t in (
                places[0] * x.shape[2] + places[1], distances[0] * (2 * window - 1) + distances[1],
                valid[0] & valid[1]))
            self.tables[key] = place, distance, there
        return self.tables[key]


def _nothing(x: Tensor) -> Tensor:
    """In the place of what an operator returns for its backward."""
    return x.new_empty(0)


def _add_layer_norm(
        _: _Replacing, x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor,
        eps: float = 1e-5, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = _nothing(x)
    if branch is not None:
        x = total = x + (branch if scale is None else branch * scale.view(-1, *(1,) * (x.ndim - 1)))
    return total, F.layer_norm(x, (x.shape[-1],), weight, bias, eps), _nothing(x), _nothing(x)


def _depthwise_conv_silu(
        _: _Replacing, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])
    return F.silu(y).permute(0, 2, 3, 1), _nothing(x)


def _mlp(
        _: _Replacing, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str = "auto",
) -> tuple[Tensor, ...]:
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2), *(_nothing(x) for _ in range(4))


def _ss2d_scan_norm(_: _Replacing, *arguments: Any) -> Tensor:
    x, (weight, bias, gate, *rest) = arguments[0], arguments[10:]
    dtype = compute_dtype(x)
    y = torch.ops.vmamba.ss2d_scan(*arguments[:10], True)[0].to(dtype)
    y = F.layer_norm(y, (x.shape[2],), weight.to(dtype), bias.to(dtype), rest[0] if rest else 1e-5)
    return (y if gate is None else y * F.silu(gate.to(dtype))).to(x.dtype)


def _ss2d_scan_norm_saving(mode: _Replacing, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _ss2d_scan_norm(mode, *arguments[:14]), _nothing(arguments[0]), _nothing(arguments[0])


def _ss2d_scan(mode: _Replacing, *arguments: Any) -> Any:
    *tensors, order, height, width, index, merge = arguments[:11]
    if index is not None:
        return None  # stays as it is
    table = mode.order(order, height, width, tensors[2].shape[0], tensors[0])
    return torch.ops.vmamba.ss2d_scan(*tensors, order, height, width, table.index, merge)


def _reorder(mode: _Replacing, x: Tensor, order: str, height: int, width: int, walk: bool) -> Tensor:
    table = mode.order(order, height, width, None, x)
    rows = (table.index if walk else table.inverse).t().long()  # [S', K]
    directions = table.num_directions
    if scan_routes(order, directions) is None:  # some may be absent: they take a row of zeros after the last
        rows = torch.where(rows < 0, x.shape[1], rows)
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, 1))
    if x.ndim == 4:
        rows, x = rows * directions + torch.arange(directions, device=x.device), x.flatten(1, 2)
    return x[:, rows]


def _arrivals(mode: _Replacing, like: Tensor, order: str, height: int, width: int) -> Tensor:
    table = mode.order(order, height, width, None, like)
    return step_moves(table).gather(1, table.inverse.long()).t()


def _ssd_scan(
        mode: _Replacing, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
        dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None, causal: bool = True,
        backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan as one whose channels have the step size of their head; without an order, as two products."""
    if not dt_softplus or initial_state is not None:
        raise NotImplementedError("no model of the suite calls ssd_scan without softplus or with an initial state")
    length, groups = B.shape[1:3]
    if not causal:
        steps = F.softplus(dt if dt_bias is None else dt + dt_bias)
        drive = (x * (-A * steps).unsqueeze(-1)).unflatten(2, (groups, x.shape[2] // groups))
        y = torch.einsum("bgmpn,blgn->blgmp", torch.einsum("blgmp,blgn->bgmpn", drive, B), C).flatten(2, 3)
        return (y if D is None else y + x * D.view(*D.shape, *(1,) * (2 - D.ndim))), _nothing(x)
    table = mode.order("uni", 1, length, 1, x)
    y = torch.ops.vmamba.ss2d_scan(
        *ssd_as_ss2d(x, dt, A, B, C, D, dt_bias), "uni", 1, length, table.index.expand(groups, -1), False)[0]
    return y.transpose(1, 2).reshape(x.shape), _nothing(x)


def _neighborhood_weights(
        mode: _Replacing, q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str = "auto",
) -> Tensor:
    """All windows at once: row after row, as the plain path goes, makes graphs that take an hour to translate."""
    places, distance, valid = mode.windows(q, window, dilated)
    dtype = compute_dtype(q)
    keys = k.to(dtype).flatten(1, 2)[:, places].permute(0, 1, 3, 4, 2)  # [B, H W, n, D, K K]
    scores = (q.to(dtype).flatten(1, 2).unsqueeze(3) @ keys).squeeze(3)
    scores = scores + bias.to(dtype).flatten(1)[:, distance].transpose(0, 1)
    weights = scores.masked_fill(~valid.unsqueeze(1), float("-inf")).softmax(dim=-1)
    return weights.reshape(*q.shape[:4], window * window).to(q.dtype)


def _neighborhood_apply(
        mode: _Replacing, weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    dtype = compute_dtype(v)
    values = v.to(dtype).flatten(1, 2)[:, mode.windows(v, window, dilated)[0]].transpose(2, 3)  # [B, H W, n, K K, D]
    return (weights.to(dtype).flatten(1, 2).unsqueeze(3) @ values).reshape(v.shape).to(v.dtype)


def _adaptive_avg_pool2d(_: _Replacing, x: Tensor, output_size: tuple[int, int] | int) -> Tensor | None:
    """Two products with averages: PyTorch's own decomposition holds for the size of the example only."""
    if not isinstance(output_size, tuple):
        return None  # stays as it is
    rows, columns = (_averages(int(cells), size, x) for cells, size in zip(output_size, x.shape[2:], strict=True))
    return rows @ x @ columns.t()


def _averages(cells: int, size: int, like: Tensor) -> Tensor:
    """What each of the positions along a side gives to the mean of each cell, ``[cells, size]``."""
    cell, position = (torch.arange(n, device=like.device) for n in (cells, size))
    begin, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    inside = (position >= begin.unsqueeze(1)) & (position < end.unsqueeze(1))
    return inside.to(like.dtype) / (end - begin).unsqueeze(1).to(like.dtype)


def _attention(
        _: _Replacing, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        scale: float | None = None, **options: Any,
) -> Tensor | None:
    """What it is: with a bias, PyTorch's own decomposition has other strides than the operator that it replaces."""
    if attn_mask is None or scale is None or options:
        return None  # stays as it is
    return (query @ key.transpose(-2, -1) * scale + attn_mask).softmax(-1) @ value


TORCHS: dict[Any, Callable] = {
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d, F.scaled_dot_product_attention: _attention}
"""Functions of PyTorch that do not survive in every graph."""
FUSED: dict[str, Callable] = {
    "add_layer_norm": _add_layer_norm, "depthwise_conv_silu": _depthwise_conv_silu, "mlp": _mlp,
    "ss2d_scan_norm": _ss2d_scan_norm, "ss2d_scan_norm_saving": _ss2d_scan_norm_saving,
    "neighborhood_weights": _neighborhood_weights, "neighborhood_apply": _neighborhood_apply}
"""Operators that do several things at once, apart."""
WALKS: dict[str, Callable] = {
    "ss2d_scan": _ss2d_scan, "ssd_scan": _ssd_scan, "reorder": _reorder, "arrivals": _arrivals}
"""Operators that know scan orders by name, with tables that the graph computes."""
