"""``analyze.py erf``: the effective receptive field of each stage."""
from __future__ import annotations

import argparse
from typing import Any

from vmamba.errors import require
from vmamba.train.run_directory import make_folder

from ..pictures import image_grid, save_figure
from ..receptive_field import ReceptiveField, effective_receptive_field
from .inputs import add_image_arguments, batches, load_images, load_model, write_table

__all__ = ["add", "run"]

SHARES = (0.2, 0.5, 0.9, 0.99)
FLOOR = 1e-4    # of the greatest weight: what is below is drawn as this


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "erf", help="effective receptive field of each stage",
        description="Draw which pixels the middle of each stage's map depends on, averaged over images: erf.png, and "
        "erf.csv with its size.")
    add_image_arguments(parser, "analysis")
    parser.add_argument("--stages", type=int, nargs="+", metavar="N",
                        help="stages, or blocks in models without, from 0 (default: all of up to four, else four)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    model, description, device = load_model(args)
    images = load_images(args.inputs, description)
    fields = effective_receptive_field(model, batches(images, args.batch_size, device), args.stages)
    make_folder(args.output)
    rows: list[dict[str, Any]] = [
        {"stage": field.stage, "map": "x".join(map(str, field.size)), "diameter_px": field.diameter,
         **{f"area_{round(100 * share)}": field.area(share) for share in SHARES}} for field in fields]
    write_table(args.output / "erf.csv", rows)
    _draw(fields, f"{description.architecture}: effective receptive field, mean of {len(images)} images", args)
    for row in rows:
        print(f"{row['stage']}: diameter {row['diameter_px']:.0f} px, half of the weight in {100 * row['area_50']:.1f} "
              "% of the image")
    return 0


def _draw(fields: list[ReceptiveField], title: str, args: argparse.Namespace) -> None:
    height, width = fields[0].weights.shape
    figure, axes = image_grid(1, len(fields), height / width, title)
    for axis, field in zip(axes[0], fields, strict=True):
        weights = (field.weights / field.weights.max()).clamp(min=FLOOR)
        shown = axis.imshow(weights.numpy(), cmap="viridis", norm=require("matplotlib.colors").LogNorm(FLOOR, 1))
        axis.set_title(f"{field.stage}\n{field.diameter:.0f} px, half in {100 * field.area(0.5):.1f} %", fontsize=7)
    figure.colorbar(shown, ax=axes[0, -1], shrink=0.8).ax.tick_params(labelsize=6)
    save_figure(figure, args.output / "erf.png")
