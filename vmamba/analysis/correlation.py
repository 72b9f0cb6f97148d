"""State correlation maps and scores: which places and which dimensions of a block's states speak for a class.

Hu et al., "Vision Mamba Mender", NeurIPS 2024. A state of a Mamba block and the derivative of a class score by it, both
cut off at zero, give two correlations: the external one tells where on the image, the internal one in which dimensions
a state speaks for the class. A good state does so on the object, and in the same few dimensions for all images of a
class; one that does not on the images that a model finds difficult is flawed, and can be mended
(:mod:`vmamba.analysis.repair`). Written from a description of the method, not from its authors' code.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.ops import ReferenceOperators

from .class_activation import normalise_maps, resize_maps
from .recorder import ScanRecorder, scan_layers
from .scans import Scan, to_places

__all__ = ["STATES", "Correlation", "ExternalScore", "InternalScore", "StateRecorder", "Tap",
           "class_template", "external_scores", "internal_score", "state_correlations"]

STATES = ("x", "c", "s", "z", "y")
"""After the input projection; after convolution and activation; after the scan; the gate before its activation; what
the mixer gives."""
EPSILON = 1e-5


class Tap(NamedTuple):
    """A state of a layer: the layer's name, and one of :data:`STATES`."""

    layer: str
    state: str


class _State(NamedTuple):
    """A tensor of the graph, and how values in its layout come to [B, places, D]; the class token's place is last."""

    tensor: Tensor
    arrange: Callable[[Tensor], Tensor]


class StateRecorder(ScanRecorder):
    """Context in which the inner states of layers are kept, as tensors of the graph.

    Args:
        model: A classifier of the suite.
        layers: Names of the modules that run the scans.

    Raises:
        UserError: As :class:`ScanRecorder`.
    """

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__(model, layers)
        self._projected: dict[str, Tensor] = {}
        self._given: dict[str, Tensor] = {}

    def __enter__(self) -> StateRecorder:
        super().__enter__()
        modules = dict(self.model.named_modules())
        for name in self.layers:
            self._hooks.append(modules[name].register_forward_hook(_keep(self._given, name)))
            if f"{name}.in_proj" in modules:
                self._hooks.append(modules[f"{name}.in_proj"].register_forward_hook(_keep(self._projected, name)))
        return self

    def main_scan(self, layer: str) -> Scan:
        """The scan of a layer; of several scales, that of its own map."""
        return max((scan for scan in self.found() if scan.layer == layer), key=lambda scan: scan.count)

    def states(self, layer: str) -> dict[str, _State]:
        """The states of a layer in the latest forward pass, those of :data:`STATES` that it has."""
        scan = self.main_scan(layer)
        channels = scan.arrange_x(scan.x).shape[-1]
        layout = self._layouts[layer]

        def arrange(values: Tensor) -> Tensor:
            """What the layer gets or gives."""
            if layout is None:
                return values.flatten(1, 2)
            tokens = values.unflatten(0, (-1, len(layout.places))).flatten(1, 2)
            return to_places(tokens, layout.places.flatten(), scan.count)

        found = {
            "c": _State(scan.x, scan.input_map), "s": _State(scan.y, scan.output_map),
            "y": _State(self._given[layer], arrange)}
        projected = self._projected.get(layer)
        if projected is not None:
            found["x"] = _State(projected, lambda values: arrange(values[..., :channels]))
            if projected.shape[-1] == 2 * channels:
                found["z"] = _State(projected, lambda values: arrange(values[..., channels:]))
        return {name: found[name] for name in STATES if name in found}

    def state(self, tap: Tap) -> _State:
        """A state of the latest forward pass.

        Raises:
            UserError: The layer has no such state.
        """
        found = self.states(tap.layer)
        if tap.state not in found:
            raise UserError(f"{tap.layer} of {type(self.model).__name__} has the states {', '.join(found)}, "
                            f"not {tap.state}")
        return found[tap.state]


def _keep(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
        found[name] = output

    return hook


@dataclass(frozen=True)
class Correlation:
    """How a state speaks for a class of each image.

    Attributes:
        external: On the map: mean over dimensions of ``relu(state) * mean(relu(d score / d state))``, [B, h, w].
        internal: In each dimension: ``relu(state) * relu(d score / d state)`` at the class token, or its mean over
            positions where there is none, [B, D].
    """

    external: Tensor
    internal: Tensor


@torch.enable_grad()
def state_correlations(
        model: Any, images: Tensor, classes: Tensor, taps: Sequence[Tap], differentiable: bool = False,
) -> tuple[Tensor, dict[Tap, Correlation]]:
    """Correlation maps of states for a class of each image, and the model's logits.

    Directions are added before what is negative is cut off.

    Args:
        model: A classifier of the suite.
        images: [B, C, H, W].
        classes: Index of each image's class [B].
        taps: The states asked for.
        differentiable: Let the maps, which are made of gradients, be differentiated. The layers from the first one
            asked for on then run step by step, and slowly.

    Raises:
        UserError: The model has no such layers or states.
    """
    layers = [name for name in scan_layers(model) if name in {tap.layer for tap in taps}]
    reference = ReferenceOperators(enabled=False)
    recorder = StateRecorder(model, [tap.layer for tap in taps])

    def begin(module: nn.Module, arguments: Any) -> None:
        reference.enabled = differentiable

    hook = model.get_submodule(layers[0]).register_forward_pre_hook(begin)
    try:
        with reference, recorder:
            logits = model(images)
    finally:
        hook.remove()
    states = {tap: recorder.state(tap) for tap in taps}
    score = logits.gather(1, classes.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(
        score, [state.tensor for state in states.values()], create_graph=differentiable)
    found = {}
    for (tap, state), gradient in zip(states.items(), gradients, strict=True):
        values, slopes = state.arrange(state.tensor).relu(), state.arrange(gradient).relu()
        scan = recorder.main_scan(tap.layer)
        h, w = scan.size
        external = (values * slopes.mean(1, keepdim=True)).mean(2)[:, :h * w].unflatten(1, (h, w))
        internal = values[:, -1] * slopes[:, -1] if scan.class_token else (values * slopes).mean(1)
        found[tap] = Correlation(external, internal)
    if not differentiable:
        found = {tap: Correlation(c.external.detach(), c.internal.detach()) for tap, c in found.items()}
    return (logits if differentiable else logits.detach()), found


@dataclass(frozen=True)
class ExternalScore:
    """Whether a state speaks for the class where the object is, for each image [B].

    Attributes:
        inside: Probability of the class for the image where the binarised map is, the rest of it in the mean colour.
        outside: The same for the rest of the image.
        coverage: Part of the image that the binarised map takes.
        overlap: Intersection over union with the object; None where nobody says where that is.
    """

    inside: Tensor
    outside: Tensor
    coverage: Tensor
    overlap: Tensor | None

    @property
    def score(self) -> Tensor:
        """``inside / outside * overlap`` [B], large where the state is faithful and on the object.

        Without masks of the objects there is no overlap in it.
        """
        faithful = (self.inside + EPSILON) / (self.outside + EPSILON)
        return faithful if self.overlap is None else faithful * self.overlap


@torch.no_grad()
def external_scores(
        model: Any, images: Tensor, classes: Tensor, external: Tensor, foreground: Tensor | None = None,
        threshold: float = 0.3,
) -> ExternalScore:
    """Score external correlation maps.

    Args:
        model: The classifier.
        images: Normalised images [B, C, H, W], of which 0 is the mean colour.
        classes: Index of each image's class [B].
        external: Maps [B, h, w].
        foreground: Where the object is [B, H, W], bool or 0 and 1; None if unknown.
        threshold: Of the map brought to [0, 1], above which it counts.
    """
    chosen = normalise_maps(resize_maps(external, (images.shape[2], images.shape[3]))) > threshold
    masks = chosen.unsqueeze(1).to(images.dtype)
    inside, outside = (
        model(part).float().softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)
        for part in (images * masks, images * (1 - masks)))
    overlap = None
    if foreground is not None:
        truth = foreground.to(chosen.device) > 0
        union = (chosen | truth).sum((1, 2))
        overlap = (chosen & truth).sum((1, 2)) / union.clamp(min=1)
    return ExternalScore(inside, outside, chosen.float().mean((1, 2)), overlap)


@dataclass(frozen=True)
class InternalScore:
    """Whether images of one class use the same, few dimensions of a state.

    Attributes:
        density: Part of the dimensions that an image uses, mean over images.
        agreement: Part of the images that use a dimension, mean over the dimensions that any of them uses.
    """

    density: float
    agreement: float

    @property
    def score(self) -> float:
        """``agreement / density``: large where images of a class share few dimensions."""
        return self.agreement / (self.density + EPSILON)


def internal_score(internal: Tensor, threshold: float = 0.3) -> InternalScore:
    """Score the internal correlations [n, D] of n images of one class, at least one.

    Args:
        internal: Of :class:`Correlation`.
        threshold: Of an image's correlations brought to [0, 1], above which it uses a dimension.
    """
    used = _normalise(internal) > threshold
    share = used.float().mean(0)
    return InternalScore(float(share.mean()), float(share.sum() / (share > 0).sum().clamp(min=1)))


def class_template(internal: Tensor, threshold: float = 0.3) -> Tensor:
    """The dimensions [D], bool, that images of one class use on average, from their internal correlations [n, D]."""
    return _normalise(internal.mean(0, keepdim=True))[0] > threshold


def _normalise(rows: Tensor) -> Tensor:
    """Each row [n, D] from 0 to 1."""
    return normalise_maps(rows.unsqueeze(1)).squeeze(1)
