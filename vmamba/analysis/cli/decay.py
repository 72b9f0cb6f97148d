"""``analyze.py decay``: step sizes, decay rates and decays of each layer and direction."""
from __future__ import annotations

import argparse
from typing import Any

from vmamba.errors import require
from vmamba.train.run_directory import make_folder

from ..decay import decay_statistics
from ..pictures import layer_labels, plain_logarithms, save_figure
from .inputs import add_image_arguments, batches, load_images, load_model, write_table

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "decay", help="how fast the states forget",
        description="Draw step sizes and decays of each layer and direction over images: decay.png, and decay.csv.")
    add_image_arguments(parser, "analysis")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    model, description, device = load_model(args)
    images = load_images(args.inputs, description)
    rows = [found.row() for found in decay_statistics(model, batches(images, args.batch_size, device))]
    make_folder(args.output)
    write_table(args.output / "decay.csv", rows)
    _draw(rows, f"{description.architecture}: states over {len(images)} images", args)
    for layer in dict.fromkeys(row["layer"] for row in rows):
        halves = ", ".join(f"{row['half_life']:.3g}" for row in rows if row["layer"] == layer)
        print(f"{layer}: half-life {halves} steps")
    return 0


def _draw(rows: list[dict[str, Any]], title: str, args: argparse.Namespace) -> None:
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    directions = 1 + max(row["direction"] for row in rows)
    figure = require("matplotlib.figure").Figure(
        figsize=(max(5.0, 0.45 * len(layers) + 2), 6.5), layout="constrained", dpi=100)
    axes = figure.subplots(3, 1, sharex=True)
    colours = require("matplotlib").colormaps["tab10"].colors
    for row in rows:
        k = row["direction"]
        x = layers.index(row["layer"]) + (k + 0.5) / directions * 0.8 - 0.4
        colour = colours[k % len(colours)]
        for axis, what in ((axes[0], "delta"), (axes[1], "decay")):
            axis.plot([x, x], [row[f"{what}_p5"], row[f"{what}_p95"]], color=colour, linewidth=0.8)
            axis.plot([x, x], [row[f"{what}_p25"], row[f"{what}_p75"]], color=colour, linewidth=3)
            axis.plot(x, row[f"{what}_p50"], marker="o", color="black", markersize=2.5)
        axes[2].plot(x, row["half_life"], marker="o", linestyle="", color=colour, markersize=4,
                     label=f"direction {k}" if row["layer"] == layers[0] else None)
    for axis, name in zip(axes, ("step size delta", "decay exp(delta A)", "half-life, steps"), strict=True):
        axis.set_ylabel(name, fontsize=8)
        axis.grid(alpha=0.3, axis="y")
        if name != "decay exp(delta A)":
            plain_logarithms(axis)
        axis.tick_params(labelsize=7, which="both")
    axes[2].set_xticks(range(len(layers)), layer_labels(layers), rotation=90)
    figure.legend(loc="outside lower center", fontsize=7, ncols=4, frameon=False)    # beside the points, not on them
    figure.suptitle(f"{title}\nlines: 5 to 95 %, bars: 25 to 75 %, dots: median", fontsize=8)
    save_figure(figure, args.output / "decay.png")
