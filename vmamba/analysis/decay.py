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
    """Counts of values between ``low`` and ``high``, from which quantiles follow to within a bin."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self.low, self.high, self.bins = low, high, bins
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.total, self.sum = 0, 0.0

    def add(self, values: Tensor, mean_of: Tensor) -> None:
        """Count ``values``; ``mean_of`` is what the mean is of."""
        self.counts += torch.histc(values.clamp(self.low, self.high), self.bins, self.low, self.high).double().cpu()
        self.total += values.numel()
        self.sum += float(mean_of.sum())

    def quantile(self, share: float) -> float:
        """Where ``share`` of the values lie below, in the middle of a bin."""
        held = self.counts.cumsum(0)
        place = int((held < share * held[-1]).sum())
        return self.low + (min(place, self.bins - 1) + 0.5) * (self.high - self.low) / self.bins


@dataclass
class DecayStatistics:
    """What the states of one direction of a layer do at each step, over images, tokens, channels and states.

    Attributes:
        layer: Name of the layer; with the size of the map where it scans several.
        direction: Number of the direction.
        delta: Step sizes.
        decay: Factors ``exp(delta A)`` by which a step multiplies a state, 0 to 1.
        rates: Least, mean and greatest of the decay rates ``-A``.
    """

    layer: str
    direction: int
    rates: tuple[float, float, float]
    delta: _Histogram = field(default_factory=lambda: _Histogram(-12.0, 4.0, 3200))     # of the decimal logarithm
    decay: _Histogram = field(default_factory=lambda: _Histogram(0.0, 1.0, 2000))

    def add(self, delta: Tensor, A: Tensor) -> None:
        """Count the step sizes [B, T, D] of a walk with the decay rates A [D, N]."""
        self.delta.add(delta.clamp(min=1e-12).log10(), delta)
        decay = torch.exp(delta.unsqueeze(-1) * A)
        self.decay.add(decay, decay)

    def row(self) -> dict[str, Any]:
        """The numbers by name; ``half_life`` is the number of steps in which the median decay halves a state."""
        row: dict[str, Any] = {"layer": self.layer, "direction": self.direction}
        row["delta_mean"] = self.delta.sum / self.delta.total
        row.update({f"delta_p{round(100 * q)}": 10 ** self.delta.quantile(q) for q in QUANTILES})
        row.update(zip(("rate_min", "rate_mean", "rate_max"), self.rates, strict=True))
        row["decay_mean"] = self.decay.sum / self.decay.total
        row.update({f"decay_p{round(100 * q)}": self.decay.quantile(q) for q in QUANTILES})
        row["half_life"] = math.log(0.5) / math.log(row["decay_p50"])
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
