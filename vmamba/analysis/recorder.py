"""Takes the scans of a model while it runs: no model knows of it, and none is slower when nobody looks.

PyTorch shows a ``TorchFunctionMode`` every operator that is called, above the gradients. So a call can be kept with
its arguments, and be run with its directions apart, which models add up at once.
"""
from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vmamba.errors import UserError
from vmamba.models._tokens import TokenBackbone
from vmamba.ops._shapes import compute_dtype
from vmamba.ops.reference import norm_and_gate
from vmamba.ops.reference_mode import call_order, operator_name
from vmamba.ops.ssd_scan import ssd_as_ss2d
from vmamba.scans import ScanOrder, scan_order

from .scans import Scan

__all__ = ["ScanRecorder", "record_scans", "scan_layers"]


def scan_layers(model: nn.Module) -> list[str]:
    """Names of the modules that may run scans: those with decay rates of their own."""
    return [name for name, module in model.named_modules() if "A_log" in module._parameters]


def record_scans(model: nn.Module, images: Tensor, layers: Collection[str] | None = None) -> list[Scan]:
    """Run a model without gradients and return its scans, in the order in which they ran.

    Args:
        model: A classifier or backbone of the suite, in evaluation mode.
        images: [B, C, H, W].
        layers: Names of modules whose scans are wanted; None for all.

    Raises:
        UserError: The model runs no scans, there is no such layer, or its tokens cannot be placed on a map.
    """
    with torch.no_grad(), ScanRecorder(model, layers) as recorder:
        model(images)
    return recorder.found()


class _Layout(NamedTuple):
    """Where the tokens are that a layer, or a scan in it, gets; see the attributes of :class:`Scan`."""

    size: tuple[int, int]
    class_token: bool
    places: Tensor  # [n, T]: of n windows, walks or directions
    windows: bool = False


class ScanRecorder(TorchFunctionMode):
    """Context in which the scans of ``model`` are kept, their tensors those of the graph.

    Inside, directions are run apart and then added. Nest it in :class:`vmamba.ops.ReferenceOperators` to run them so
    that gradients can be differentiated. In eager mode only.

    Args:
        model: A classifier or backbone of the suite.
        layers: Names of the modules whose scans are kept; None for all.

    Attributes:
        scans: Those of the latest forward pass, in order.

    Raises:
        UserError: There is no such layer; in the forward pass, that tokens cannot be placed on a map.
    """

    def __init__(self, model: nn.Module, layers: Collection[str] | None = None) -> None:
        super().__init__()
        known = scan_layers(model)
        for name in layers or ():
            if name not in known:
                raise UserError(f"the model has no scan layer {name!r}; it has {', '.join(known) or 'none'}")
        self.model = model
        self.layers = known if layers is None else [name for name in known if name in layers]
        self.scans: list[Scan] = []
        self._hooks: list[Any] = []
        self._images, self._pixels = 0, (0, 0)
        self._windows: _Layout | None = None    # by a reordering around layers
        self._layer = ""
        self._layouts: dict[str, _Layout | None] = {}   # of the input of each layer; None for a map
        self._walks: _Layout | None = None      # by a reordering in the layer

    def __enter__(self) -> ScanRecorder:
        self._hooks.append(self.model.register_forward_pre_hook(self._begin))
        modules = dict(self.model.named_modules())
        for name in scan_layers(self.model):
            self._hooks.append(modules[name].register_forward_pre_hook(self._enter_layer(name)))
            self._hooks.append(modules[name].register_forward_hook(self._leave_layer))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def found(self) -> list[Scan]:
        """The scans, of which there have to be some.

        Raises:
            UserError: There are none.
        """
        if not self.scans:
            raise UserError(f"{type(self.model).__name__} runs no scans, which this looks at: it has no states")
        return self.scans

    def _begin(self, module: nn.Module, arguments: tuple) -> None:
        self.scans, self._windows, self._layer = [], None, ""
        self._images, self._pixels = arguments[0].shape[0], arguments[0].shape[-2:]

    def _enter_layer(self, name: str) -> Callable[[nn.Module, tuple], None]:
        def enter(module: nn.Module, arguments: tuple) -> None:
            self._layer, self._walks = name, None
            if name in self.layers:
                self._layouts[name] = self._layout_of(arguments[0])

        return enter

    def _leave_layer(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        self._layer = ""

    def _layout_of(self, x: Tensor) -> _Layout | None:
        """Layout of what a layer gets."""
        if x.ndim == 4:
            return None
        if self._windows is not None:
            walk = self._windows.places.view(-1, x.shape[1])
            if len(walk) * self._images == x.shape[0]:
                return self._windows._replace(places=walk, windows=True)
        if isinstance(self.model, TokenBackbone):
            h, w = self.model.patch_embed.grid_size(*self._pixels)
            numbers = torch.arange(x.shape[1], device=x.device)
            patches, token = self.model._split(numbers.view(1, -1, 1))
            if patches.shape[1] == h * w:
                places = torch.full_like(numbers, h * w)
                places[patches.flatten()] = torch.arange(h * w, device=x.device)
                return _Layout((h, w), token is not None, places.unsqueeze(0))
        raise self._unplaced()

    def _unplaced(self) -> UserError:
        return UserError(
            f"cannot tell where on the image the tokens of {self._layer} are: {type(self.model).__name__} cuts, joins "
            "or shuffles them in a way of its own")

    def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        run = _WATCHED.get(operator_name(func))
        return run(self, *args, **(kwargs or {})) if run else func(*args, **(kwargs or {}))

    def _reorder(self, x: Tensor, order: str, height: int, width: int, walk: bool) -> Tensor:
        table = scan_order(order, (height, width), device=x.device).index.long()
        if self._layer and walk:
            self._walks = _Layout((height, width), False, table)
        elif not self._layer:
            self._windows = _Layout((height, width), False, table) if walk and len(table) == 1 else None
        return torch.ops.vmamba.reorder(x, order, height, width, walk)

    def _scan(
            self, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
            D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
            backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        y, states = torch.ops.vmamba.ss2d_scan(
            x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, False, backend)
        if self._layer in self.layers:
            walks = call_order(x, A_log, order, height, width, index)
            self._keep(walks, x, y, proj, dt_weight, dt_bias, A_log, D_skip)
        return (y.sum(1) if merge else y), states

    def _scan_norm(
            self, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
            D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor,
            norm_bias: Tensor, gate: Tensor | None, eps: float = 1e-5, backend: str = "auto",
    ) -> Tensor:
        merged, _ = self._scan(x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, True)
        return norm_and_gate(merged.to(compute_dtype(x)), norm_weight, norm_bias, gate, eps).to(x.dtype)

    def _scan_norm_saving(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        y = self._scan_norm(*arguments[:14])
        return y, y.new_empty(0), y.new_empty(0)

    def _keep(
            self, order: ScanOrder, x: Tensor, y: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None,
            A_log: Tensor, D_skip: Tensor | None,
    ) -> None:
        layout = self._scan_layout(x, order)
        fold = x.shape[0] // self._images
        if fold == 1:
            self.scans.append(Scan(
                self._layer, *layout, order, x, y, _same, _same, proj, dt_weight, dt_bias, A_log, D_skip))
            return
        order = ScanOrder(order.name, order.size, order.index.expand(fold, -1).contiguous(), order.num_tokens)

        def shared(t: Tensor) -> Tensor:
            """``[1, ...] -> [fold, ...]``."""
            return t.expand(fold, *t.shape[1:])

        def unfold(t: Tensor) -> Tensor:
            """``[B * fold, L, C] -> [B, L, fold, C]``."""
            return t.unflatten(0, (-1, fold)).transpose(1, 2)

        self.scans.append(Scan(
            self._layer, *layout, order, x, y, unfold, lambda t: t.squeeze(1).unflatten(0, (-1, fold)),
            unfold(proj.squeeze(2)), shared(dt_weight), shared(dt_bias) if dt_bias is not None else None, shared(A_log),
            shared(D_skip) if D_skip is not None else None))

    def _scan_layout(self, x: Tensor, order: ScanOrder) -> _Layout:
        """Where the tokens [L] of the K directions of a scan are, those in the batch included."""
        fold, directions, tokens = x.shape[0] // self._images, order.num_directions, x.shape[1]
        layout, walks = self._layouts[self._layer], self._walks
        if walks is not None:
            places = walks.places
            if layout is not None:
                places = torch.where(places < 0, -1, layout.places[0][places.clamp(min=0)])
                walks = layout
            fits = len(places) in (fold, directions) and fold * directions == len(places)
        elif layout is not None:
            walks, places = layout, layout.places if fold > 1 else layout.places.expand(directions, -1)
            fits = fold == len(layout.places)
        else:
            h, w = order.size
            walks = _Layout((h, w), False, x)
            places = (torch.arange(tokens, device=x.device) % (h * w)).expand(directions, -1)
            fits = fold == 1
        if not fits or places.shape[1] != tokens:
            raise self._unplaced()
        return walks._replace(places=places)

    def _ssd_scan(
            self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
            dt_softplus: bool, initial_state: Tensor | None, causal: bool = True, backend: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """Mamba-2's scan is one of the other kind, whose channels have the step size of their head."""
        y, last = torch.ops.vmamba.ssd_scan(
            x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal, backend)
        if self._layer not in self.layers or not causal:    # without an order it is no scan
            return y, last
        batch, length, directions = B.shape[:3]

        def by_direction(t: Tensor) -> Tensor:
            """``[B, L, K * heads, P] -> [B, L, K, heads * P]``."""
            return t.reshape(batch, length, directions, -1)

        if not dt_softplus or initial_state is not None:
            raise NotImplementedError("no model of the suite calls ssd_scan without softplus or with an initial state")
        order = ScanOrder(
            "uni", (1, length), torch.arange(length, dtype=torch.int32, device=x.device).expand(directions, -1), length)
        layout = self._scan_layout(x, order)
        _, proj, weight, bias, A_log, D_skip = ssd_as_ss2d(x, dt, A, B, C, D, dt_bias)
        self.scans.append(Scan(
            self._layer, *layout, order, x, y, by_direction, lambda t: by_direction(t).transpose(1, 2), proj, weight,
            bias, A_log, D_skip))
        return y, last


def _same(t: Tensor) -> Tensor:
    return t


_WATCHED: dict[str, Callable] = {
    "vmamba::reorder": ScanRecorder._reorder,
    "vmamba::ss2d_scan": ScanRecorder._scan,
    "vmamba::ss2d_scan_norm": ScanRecorder._scan_norm,
    "vmamba::ss2d_scan_norm_saving": ScanRecorder._scan_norm_saving,
    "vmamba::ssd_scan": ScanRecorder._ssd_scan,
}
