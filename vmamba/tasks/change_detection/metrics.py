"""Metrics of the three tasks, streamed over a data set; from torchmetrics where it has them."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import require

from .losses import IGNORED

__all__ = ["MAIN_METRIC", "ChangeMetrics", "class_maps", "create_metrics"]

MAIN_METRIC = {"bcd": "f1", "scd": "sek", "bda": "f1_oa"}
"""The metric by which a task's models are compared."""


def class_maps(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Most probable classes, ``[B, classes, H, W] -> [B, H, W]`` int64, by output.

    Land cover is chosen among the classes from 1 on: class 0 is "no label" and never learnt.
    """
    return {
        name: 1 + x[:, 1:].argmax(1) if name in ("first", "second") else x.argmax(1) for name, x in logits.items()}


class ChangeMetrics:
    """Base of the tasks' metrics.

    ``update`` takes maps of classes [B, H, W] int64 by output, and labels by the same names, :data:`IGNORED` for
    pixels that do not count; ``compute`` gives everything seen since the last ``reset`` by name, parts of 1.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}

    def to(self, device: torch.device) -> "ChangeMetrics":
        """Move the sums to a device."""
        self.metrics = {name: metric.to(device) for name, metric in self.metrics.items()}
        return self

    def reset(self) -> None:
        """Forget what was seen."""
        for metric in self.metrics.values():
            metric.reset()

    def update(self, maps: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Count a batch."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """All metrics of the task by name."""
        raise NotImplementedError


class BinaryMetrics(ChangeMetrics):
    """Of the class "changed": recall, precision, F1, IoU; overall accuracy (oa), and Cohen's kappa."""

    def __init__(self) -> None:
        super().__init__()
        library = require("torchmetrics")
        kinds = {
            "recall": library.Recall, "precision": library.Precision, "oa": library.Accuracy, "f1": library.F1Score,
            "iou": library.JaccardIndex, "kappa": library.CohenKappa}
        self.metrics = {"change": library.MetricCollection(
            {name: kind(task="binary", ignore_index=IGNORED) for name, kind in kinds.items()})}

    def update(self, maps: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        self.metrics["change"].update(maps["change"], labels["change"])

    def compute(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.metrics["change"].compute().items()}


class SemanticMetrics(ChangeMetrics):
    """Metrics of SECOND: sek, kappa_n0, f_scd, miou, oa.

    Yang et al., "Asymmetric Siamese Networks for Semantic Change Detection in Aerial Images", arXiv:2010.05687,
    section IV. Covers a and b of a changed pixel make the transition ``(a - 1) classes + b``, an unchanged one is 0.
    kappa_n0 is Cohen's kappa of the transitions without what is 0 in both; ``sek = kappa_n0 exp(IoU_change - 1)``;
    f_scd is the F1 score of the changed pixels' transitions; miou is over unchanged and changed; oa is the mean of the
    images' shares of right pixels.

    Args:
        num_classes: Classes of land cover, with "no label".
    """

    def __init__(self, num_classes: int = 7) -> None:
        super().__init__()
        library = require("torchmetrics")
        self.covers = num_classes - 1
        self.metrics = {
            "transitions": library.ConfusionMatrix(
                task="multiclass", num_classes=1 + self.covers ** 2, ignore_index=IGNORED ** 2),
            "oa": library.MeanMetric()}

    def _transitions(self, maps: Mapping[str, Tensor], what: str) -> Tensor:
        changed = maps["change"] == 1
        for name in ("first", "second"):
            cover = maps[name][changed]
            if cover.numel() and not 1 <= int(cover.min()) <= int(cover.max()) <= self.covers:
                raise ValueError(
                    f"{what} {name!r} has class {int(cover.min() if cover.min() < 1 else cover.max())} where something "
                    f"changed, but land cover has the classes 1 to {self.covers}")
        return torch.where(changed, (maps["first"] - 1) * self.covers + maps["second"], 0)

    def update(self, maps: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        counted = labels["change"] != IGNORED
        found = self._transitions(maps, "prediction")
        truth = self._transitions(labels, "label").masked_fill(~counted, IGNORED ** 2)
        self.metrics["transitions"].update(found, truth)
        for right, valid in zip(found == truth, counted, strict=True):
            if bool(valid.any()):
                self.metrics["oa"].update(right[valid].double().mean())

    def compute(self) -> dict[str, float]:
        table = self.metrics["transitions"].compute().double()  # [true, predicted]
        both_unchanged, right = table[0, 0], table.diag()[1:].sum()
        missed, false = table[1:, 0].sum(), table[0, 1:].sum()
        changed = table[1:, 1:].sum()
        iou_change = changed / (changed + missed + false)
        iou_same = both_unchanged / (both_unchanged + missed + false)
        without = table.clone()
        without[0, 0] = 0
        total = without.sum()
        observed = without.diag().sum() / total
        expected = (without.sum(0) * without.sum(1)).sum() / total ** 2
        kappa = (observed - expected) / (1 - expected)
        f_scd = 2 * right / (2 * changed + missed + false)
        values = {
            "sek": kappa * (iou_change - 1).exp(), "kappa_n0": kappa, "f_scd": f_scd,
            "miou": (iou_change + iou_same) / 2, "oa": self.metrics["oa"].compute()}
        return {name: float(value) for name, value in values.items()}


class DamageMetrics(ChangeMetrics):
    """Metrics of xBD's challenge: f1_loc, f1_clf, f1_oa, and f1_damage<N> of each class.

    Gupta et al., "Creating xBD", CVPR workshops 2019, arXiv:1911.09296, and the xView2 challenge. f1_loc is the F1
    score of "building"; those of damage are over the pixels that are buildings in truth; f1_clf is their harmonic
    mean, and ``f1_oa = 0.3 f1_loc + 0.7 f1_clf``.

    Args:
        num_classes: Classes of damage, with the background.
    """

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        library = require("torchmetrics")
        self.metrics = {
            "building": library.F1Score(task="binary", ignore_index=IGNORED),
            "damage": library.F1Score(
                task="multiclass", num_classes=num_classes, average="none", ignore_index=IGNORED)}

    def update(self, maps: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        self.metrics["building"].update(maps["building"], labels["building"])
        self.metrics["damage"].update(
            maps["damage"], labels["damage"].masked_fill(labels["building"] != 1, IGNORED))

    def compute(self) -> dict[str, float]:
        loc = float(self.metrics["building"].compute())
        by_class = self.metrics["damage"].compute().double()[1:]
        clf = float(len(by_class) / (1 / by_class.clamp(min=1e-12)).sum())
        return {
            "f1_oa": 0.3 * loc + 0.7 * clf, "f1_loc": loc, "f1_clf": clf,
            **{f"f1_damage{i}": float(f1) for i, f1 in enumerate(by_class, start=1)}}


def create_metrics(task: str, num_classes: int | None = None) -> ChangeMetrics:
    """The metrics of a task.

    Args:
        task: "bcd", "scd" or "bda".
        num_classes: Classes of land cover or damage; None for the published number.

    Raises:
        UserError: torchmetrics is not installed.
    """
    if task == "bcd":
        return BinaryMetrics()
    kind: Any = {"scd": SemanticMetrics, "bda": DamageMetrics}[task]
    return kind() if num_classes is None else kind(num_classes)
