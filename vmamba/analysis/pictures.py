"""Drawing: heat maps on images, and files that are small."""
from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vmamba.errors import require
from vmamba.train.run_directory import atomic_path

__all__ = ["draw_heat", "draw_image", "image_grid", "layer_labels", "plain_logarithms", "save_figure", "shown_image"]

COLOURS = "inferno"
PANEL = 2.0  # inches


def shown_image(image: Tensor, data_config: dict[str, Any]) -> Tensor:
    """A normalised image [C, H, W] as it is shown, [H, W, 3] from 0 to 1."""
    mean, std = (torch.tensor(data_config[key], device=image.device).view(-1, 1, 1) for key in ("mean", "std"))
    pixels = (image * std + mean).clamp(0, 1)
    return (pixels.expand(3, -1, -1) if len(pixels) != 3 else pixels).permute(1, 2, 0).detach().cpu()


def image_grid(rows: int, columns: int, aspect: float = 1.0, title: str = "") -> tuple[Any, Any]:
    """A figure and its axes [rows][columns], for panels of height / width = ``aspect``."""
    figure = require("matplotlib.figure").Figure(
        figsize=(columns * (PANEL + 0.15), rows * (PANEL * aspect + 0.3) + (0.35 if title else 0)),
        layout="constrained", dpi=100)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    if title:
        figure.suptitle(title, fontsize=9)
    return figure, axes


def draw_image(axis: Any, shown: Tensor, title: str = "", at: tuple[float, float] | None = None) -> None:
    """An image [H, W, 3], with a cross at a pixel (row, column)."""
    axis.imshow(shown.numpy())
    _finish(axis, shown, title, at)


def draw_heat(
        axis: Any, shown: Tensor, heat: Tensor, title: str = "", at: tuple[float, float] | None = None,
        smooth: bool = True,
) -> None:
    """A map [h, w] in colours over an image [H, W, 3] in grey, scaled by its greatest value.

    Args:
        axis: Of matplotlib.
        shown: The image.
        heat: The map, not negative.
        title: Of the panel.
        at: Pixel (row, column) to mark by a cross.
        smooth: Interpolate, instead of showing the map's own pixels.
    """
    height, width = shown.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    heat = heat.detach().cpu().double()
    axis.imshow(shown.mean(2).numpy(), cmap="gray", vmin=0, vmax=1, extent=extent)
    axis.imshow(
        heat.numpy(), cmap=COLOURS, vmin=0, vmax=max(float(heat.max()), 1e-30), alpha=0.65, extent=extent,
        interpolation="bilinear" if smooth else "nearest")
    _finish(axis, shown, title, at)


def _finish(axis: Any, shown: Tensor, title: str, at: tuple[float, float] | None) -> None:
    height, width = shown.shape[:2]
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    if at is not None:
        axis.plot([at[1]], [at[0]], marker="+", color="cyan", markersize=9, markeredgewidth=1.6)
    axis.set_title(title, fontsize=7, pad=3)


def save_figure(figure: Any, path: Path, colours: int = 256) -> None:
    """Write a figure as PNG, with a palette, which makes a third of the file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with atomic_path(path) as temporary:
        Image.open(buffer).convert("RGB").quantize(colours).save(temporary, format="png", optimize=True)


def plain_logarithms(axis: Any) -> None:
    """Make the vertical axis logarithmic, with numbers such as 40 instead of powers."""
    axis.set_yscale("log")
    for choose in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        choose(require("matplotlib.ticker").LogFormatter())


def layer_labels(names: Sequence[str]) -> list[str]:
    """Names of layers without what they have in common at their ends, for axes."""
    parts = [name.split(".") for name in names]
    while all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]
