#!/usr/bin/env python3
r"""Draw scan orders: the path of every direction over the grid, coloured by position, dark to bright.

A disc marks the first token and a square the last; thin lines are jumps, to tokens that are not among the eight around.
Orders that walk copies of the grid get a panel a copy.

Examples:
    python tools/show_scan.py hilbert4
    python tools/show_scan.py h+v_flip+w7+w7_flip --size 14 14 --output local.png
    python tools/show_scan.py consistent_traverse --size 4 4 4
    python tools/show_scan.py --gallery docs/images
"""

import argparse
import io
import math
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from vmamba.errors import UserError, require, tool
from vmamba.scans import (
    VIDEO_SCANS,
    ScanOrder,
    consistent_traverse,
    hilbert_voxels,
    list_scans,
    morton_voxels,
    scan_order,
    video_order,
)

VOXELS = {"consistent_traverse": consistent_traverse, "hilbert_voxels": hilbert_voxels, "morton_voxels": morton_voxels}
CLIPS = {name: partial(video_order, name) for name in VIDEO_SCANS}
SOLIDS = {**VOXELS, **CLIPS}  # of three sides
GALLERY_SIZE = (8, 8)
GALLERY_SIZES = {"window4": (14, 14), "window_then_global": (14, 14), "hilbert4": (14, 14)}
PANEL = 1.5  # inches
COLOURS = "plasma"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="scan orders; any name a model takes, or " + ", ".join(SOLIDS))
    add("--size", type=int, nargs="+", default=list(GALLERY_SIZE), metavar="N",
        help="grid: height and width, or three sides for orders of voxels and clips (8 8)")
    add("--output", metavar="FILE", help="PNG to write (default: NAME.png); for one order only")
    add("--gallery", metavar="DIR", help="draw every registered order to DIR/scan_NAME.png")
    add("--dpi", type=int, default=100, metavar="N", help="dots per inch (100)")
    args = parser.parse_args(argv)
    if bool(args.names) == bool(args.gallery):
        parser.error("name orders to draw, or say --gallery DIR")
    if args.output and len(args.names) != 1:
        parser.error("--output is for one order")
    return args


def find(name: str, size: list[int]) -> ScanOrder:
    """The order of that name, with its errors as the user's."""
    try:
        if name in SOLIDS:
            if len(size) != 3 or min(size) < 1:
                what = "voxels" if name in VOXELS else "clips"
                raise UserError(f"{name} is for {what}: --size needs three positive integers, got {tuple(size)}")
            return SOLIDS[name](size)
        return scan_order(name, size)
    except ValueError as error:
        raise UserError(str(error)) from error


class Panel(NamedTuple):
    """One walk, or its part over one copy of the grid."""

    title: str
    places: torch.Tensor  # [tokens, axes], in the order of the visit
    times: torch.Tensor  # [tokens], steps as parts of the whole walk, 0 to 1


def panels(order: ScanOrder) -> list[Panel]:
    """What there is to draw, without padding."""
    tokens, found = math.prod(order.size), []
    for k, walk in enumerate(order.index.long()):
        times = torch.linspace(0, 1, len(walk))[walk >= 0]
        walk = walk[walk >= 0]
        for copy in range(order.num_tokens // tokens):
            here = walk // tokens == copy
            places = torch.stack(torch.unravel_index(walk[here] % tokens, order.size), dim=1)
            title = f"direction {k}" if order.num_tokens == tokens else f"direction {k}, copy {copy}"
            found.append(Panel(title, places, times[here]))
    return found


def draw_panel(axis, panel: Panel, size: tuple[int, ...]) -> None:
    """Draw a walk; in the plane rows go down and columns to the right, in space the axes are x, y, z."""
    points = panel.places if len(size) == 3 else panel.places.flip(1)
    colours = require("matplotlib").colormaps[COLOURS]((0.9 * panel.times).numpy())
    unit = 22 * PANEL / max(size) if len(size) == 2 else 5.0
    axis.scatter(*points.t().tolist(), s=(0.7 * unit) ** 2, color=colours, linewidths=0, zorder=2)
    steps = torch.stack([points[:-1], points[1:]], dim=1)  # [steps, 2, axes]
    near = (steps[:, 0] - steps[:, 1]).abs().amax(1) <= 1
    lines = (require("mpl_toolkits.mplot3d.art3d").Line3DCollection if len(size) == 3
             else require("matplotlib.collections").LineCollection)
    for chosen, width in ((~near, 0.1), (near, 0.35)):
        if chosen.any():
            axis.add_collection(lines(
                steps[chosen].tolist(), colors=colours[1:][chosen.numpy()], linewidths=width * unit,
                capstyle="round"))
    for end, marker in ((0, "o"), (-1, "s")):
        axis.scatter(*([p] for p in points[end].tolist()), s=(1.3 * unit) ** 2, color=colours[end], marker=marker,
                     linewidths=0, zorder=3)
    if len(size) == 3:
        axis.set(xlim=(0, size[0] - 1), ylim=(0, size[1] - 1), zlim=(0, size[2] - 1))
        axis.set_box_aspect([max(1, extent - 1) for extent in size])
    else:
        axis.set(xlim=(-0.6, size[1] - 0.4), ylim=(size[0] - 0.4, -0.6), aspect="equal")
        axis.set_xticks([x - 0.5 for x in range(size[1] + 1)])
        axis.set_yticks([y - 0.5 for y in range(size[0] + 1)])
        axis.grid(color="0.88", linewidth=0.5)
        axis.set_axisbelow(True)
        axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelbottom=False, labelleft=False, labelsize=0)


def draw(order: ScanOrder, path: Path, dpi: int) -> None:
    """Write a PNG with a panel for each direction, and each copy of the grid; at most four in a row."""
    found = panels(order)
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    flat = len(order.size) == 2
    panel = PANEL if flat else 1.5 * PANEL
    height = panel * order.size[0] / order.size[1] if flat else panel
    figure = require("matplotlib.figure").Figure(
        figsize=(columns * (panel + 0.1), rows * (height + 0.22)), layout="constrained", dpi=dpi)
    for i, found_panel in enumerate(found):
        axis = figure.add_subplot(rows, columns, i + 1, **({} if flat else {"projection": "3d"}))
        draw_panel(axis, found_panel, order.size)
        axis.set_title(found_panel.title, fontsize=8, pad=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    # a palette makes a third of the file
    Image.open(buffer).convert("RGB").quantize(64).save(path, format="png", optimize=True)


def solid_gallery() -> list[str]:
    """Orders of three sides; of those of clips the one that has all directions of the others."""
    return [*VOXELS, "spatiotemporal_v2"]


def gallery() -> list[str]:
    """Registered orders without those that are a part of another one's picture: ``NAME`` where there is ``NAME4``."""
    names = list_scans()
    parts = {"h", "v", "snake_h", "snake_v", "uni", "cascade", "antidiagonal"}
    return [name for name in names if f"{name}4" not in names and name not in parts]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.gallery:
        folder = Path(args.gallery)
        folder.mkdir(parents=True, exist_ok=True)
        for name in gallery():
            draw(find(name, GALLERY_SIZES.get(name, GALLERY_SIZE)), folder / f"scan_{name}.png", args.dpi)
        for name in solid_gallery():
            draw(find(name, [4, 4, 4]), folder / f"scan_{name}.png", args.dpi)
        return 0
    for name in args.names:
        path = Path(args.output or f"{name}.png")
        draw(find(name, args.size), path, args.dpi)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
