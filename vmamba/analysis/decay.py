"""How fast the states of a model forget: step sizes, decay rates and decays of each layer and direction."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .recorder import ScanRecorder
from .scans import Scan

__all__ = ["DecayStatistics", "decay_statistics"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class _Histogram:
    """Counts of positive numbers by their decimal logarithm, from which quantiles follow to within 0.6 %."""

    LOW, HIGH, BINS = -12.0, 4.0, 3200

    def __init__(self) -> None:
        self.counts = torch.zeros(self.BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count numbers."""
        logarithms = values.log10().clamp(self.LOW, self.HIGH)
        self.counts += torch.histc(logarithms, self.BINS, self.LOW, self.HIGH).double().cpu()

    def quantile(self, share: float) -> float:
        """The number that ``share`` of all lie below, in the middle of a bin."""
        held = self.counts.cumsum(0)
        place = min(int((held < share * held[-1]).sum()), self.BINS - 1)
        return 10 ** (self.LOW + (place + 0.5) * (self.HIGH - self.LOW) / self.BINS)


@dataclass
class DecayStatistics:
    """What the states of one direction of a layer do at each step, over images, tokens, channels and states.

    Attributes:
        layer: Name of the layer; with the size of the map where it scans several.
        direction: Number of the direction.
        rates: Least, mean and greatest of the decay rates ``-A``.
    """

    layer: str
    direction: int
    rates: tuple[float, float, float]
    _delta: _Histogram = field(default_factory=_Histogram)
    _product: _Histogram = field(default_factory=_Histogram)    # of step sizes and rates: what states decay by
    _sums: tuple[float, float] = (0.0, 0.0)
    _counts: tuple[int, int] = (0, 0)

    def add(self, delta: Tensor, A: Tensor) -> None:
        """Count the step sizes [B, T, D] of a walk with the decay rates A [D, N]."""
        product = -delta.unsqueeze(-1) * A
        self._delta.add(delta)
        self._product.add(product)
        self._sums = self._sums[0] + float(delta.sum()), self._sums[1] + float(torch.exp(-product).sum())
        self._counts = self._counts[0] + delta.numel(), self._counts[1] + product.numel()

    def row(self) -> dict[str, Any]:
        """The numbers by name: step sizes ``delta``, rates, and decays ``exp(delta A)``, from 0 to 1.

        Quantiles are named ``p5`` to ``p95``. ``half_life`` is the number of steps of the median decay that halve a
        state.
        """
        row: dict[str, Any] = {"layer": self.layer, "direction": self.direction}
        row["delta_mean"] = self._sums[0] / self._counts[0]
        row.update({f"delta_p{round(100 * q)}": self._delta.quantile(q) for q in QUANTILES})
        row.update(zip(("rate_min", "rate_mean", "rate_max"), self.rates, strict=True))
        row["decay_mean"] = self._sums[1] / self._counts[1]
        row.update({f"decay_p{round(100 * q)}": math.exp(-self._product.quantile(1 - q)) for q in QUANTILES})
        row["half_life"] = math.log(2) / self._product.quantile(0.5)
        return row


@torch.no_grad()
def decay_statistics(model: torch.nn.Module, batches: Iterable[Tensor]) -> list[DecayStatistics]:
    """Statistics of every direction of every layer, in the order in which they run.

    Padding, where the state decays too, counts as steps.

    Args:
        model: A classifier or backbone of the suite, in evaluation mode.
        batches: Images [B, C, H, W], at least one batch.

    Raises:
        UserError: The model runs no scans.
    """
    found: dict[tuple[int, int], DecayStatistics] = {}
    recorder = ScanRecorder(model)
    for images in batches:
        with recorder:
            model(images)
        scans = recorder.found()
        names = _names(scans)
        for number, scan in enumerate(scans):
            for k in range(scan.directions):
                walk = scan.walk(k)
                key = (number, 0 if scan.windows else k)
                if key not in found:
                    rates = -walk.A
                    found[key] = DecayStatistics(
                        names[number], key[1], (float(rates.min()), float(rates.mean()), float(rates.max())))
                found[key].add(walk.delta, walk.A)
    return list(found.values())


def _names(scans: list[Scan]) -> list[str]:
    """Names of scans, that tell those of one layer apart."""
    layers = [scan.layer for scan in scans]
    return [
        scan.layer if layers.count(scan.layer) == 1 else f"{scan.layer} {scan.size[0]}x{scan.size[1]}"
        for scan in scans]
