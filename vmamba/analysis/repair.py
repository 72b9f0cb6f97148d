"""Mends flawed states by fine-tuning: the correlation maps become part of the loss.

Hu et al., "Vision Mamba Mender", NeurIPS 2024; see :mod:`vmamba.analysis.correlation`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from .class_activation import resize_maps
from .correlation import Correlation, Tap, class_template, state_correlations

__all__ = ["ClassTemplates", "RepairTask", "external_loss", "internal_loss"]


def external_loss(maps: Sequence[Tensor], foreground: Tensor) -> Tensor:
    """Correlation that lies beside the object: ``sum(E (1 - F)) / B``, a scalar.

    Args:
        maps: External correlations [B, h, w] of the states; E is their sum over states and mean over layers, at the
            size of the image. Give the sum over the states of each layer.
        foreground: F, where the object is [B, H, W], 0 to 1.
    """
    total = torch.stack([resize_maps(m, (foreground.shape[1], foreground.shape[2])) for m in maps]).mean(0)
    return (total * (1 - foreground)).sum() / len(foreground)


def internal_loss(internal: Tensor, template: Tensor) -> Tensor:
    """Correlation in dimensions that the class does not use: ``mean(i (1 - M))``, a scalar.

    Args:
        internal: Internal correlations [B, D].
        template: M, the dimensions that each image's class uses [B, D], 0 and 1.
    """
    return (internal * (1 - template.to(internal.dtype))).mean()


class ClassTemplates:
    """Collects the internal correlations of images that the model finds simple, for a template of each class.

    Args:
        num_classes: Classes of the model.
        confidence: Probability of its class from which an image is simple.
        threshold: Of :func:`class_template`.
    """

    def __init__(self, num_classes: int, confidence: float = 0.8, threshold: float = 0.3) -> None:
        self.num_classes, self.confidence, self.threshold = num_classes, confidence, threshold
        self.counts = torch.zeros(num_classes)
        self._sums: dict[Tap, Tensor] = {}

    def add(self, logits: Tensor, classes: Tensor, correlations: dict[Tap, Correlation]) -> None:
        """Take the simple ones of a batch: classified as their class [B] with at least the confidence."""
        probabilities, predicted = logits.float().softmax(1).max(1)
        simple = (predicted == classes) & (probabilities >= self.confidence)
        chosen = classes[simple].cpu()
        self.counts.index_add_(0, chosen, torch.ones(len(chosen)))
        for tap, found in correlations.items():
            rows = found.internal[simple].float().cpu()
            sums = self._sums.setdefault(tap, torch.zeros(self.num_classes, rows.shape[1]))
            sums.index_add_(0, chosen, rows)

    def templates(self) -> dict[Tap, Tensor]:
        """Template of each class by state, [num_classes, D] bool; a class without simple images uses all dimensions."""
        return {
            tap: torch.stack([
                class_template((row / count).unsqueeze(0), self.threshold) if count else torch.ones_like(row).bool()
                for row, count in zip(sums, self.counts, strict=True)])
            for tap, sums in self._sums.items()}


class RepairTask(ClassificationTask):
    """Classification, and states that correlate with the class on its object and in its dimensions only.

    loss = task loss + external weight * external loss + internal weight * internal loss, with the true classes. It is
    differentiated twice: the layers from the first one named on run step by step.

    Args:
        model: The trained classifier to mend.
        external: States whose external correlation counts.
        internal: States whose internal correlation counts.
        templates: Of :class:`ClassTemplates`, for the latter.
        external_weight: Weight of the external loss; the authors take 1e7 for Vim-Tiny.
        internal_weight: Weight of the internal loss; the authors take 1e7 to 1e8.
        **kwargs: Of ``ClassificationTask``.
    """

    def __init__(
            self, model: nn.Module, external: Sequence[Tap], internal: Sequence[Tap],
            templates: dict[Tap, Tensor] | None = None, external_weight: float = 1e7, internal_weight: float = 1e7,
            **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.external, self.internal = list(external), list(internal)
        self.external_weight, self.internal_weight = external_weight, internal_weight
        self.templates = {tap: templates[tap].to(self.device) for tap in internal} if templates else {}

    def losses(self, correlations: dict[Tap, Correlation], target: Tensor, foreground: Tensor | None) -> dict[str, Any]:
        """The losses ``external`` and ``internal``, 0 where no state is named or nothing is known to compare with."""
        external: Any = 0.0
        if self.external and foreground is not None:
            layers = dict.fromkeys(tap.layer for tap in self.external)
            by_layer = [
                torch.stack([correlations[tap].external for tap in self.external if tap.layer == layer]).sum(0)
                for layer in layers]
            external = external_loss(by_layer, foreground)
        internal: Any = 0.0
        for tap in self.internal if self.templates else ():
            internal = internal + internal_loss(correlations[tap].internal, self.templates[tap][target])
        return {"external": external, "internal": internal}

    def forward(self, input: Tensor, target: Tensor, foreground: Tensor | None = None) -> dict[str, Any]:
        """Images [B, C, H, W], classes [B] and, where known, objects [B, H, W] -> `loss`, its parts and `output`."""
        taps = list(dict.fromkeys([*self.external, *self.internal]))
        logits, correlations = state_correlations(
            self.trainable_module, input, target, taps, differentiable=True)
        parts = self.losses(correlations, target, foreground)
        loss = self.criterion(logits, target) + self.external_weight * parts["external"]
        return {"loss": loss + self.internal_weight * parts["internal"], "output": logits, **parts}
