"""``analyze.py cam``: class activation maps at the outputs of stages."""
from __future__ import annotations

import argparse
from typing import Any

import torch

from vmamba.errors import UserError, near_names
from vmamba.train.checkpoint import Description
from vmamba.train.run_directory import make_folder

from ..class_activation import class_activation, normalise_maps, resize_maps
from ..pictures import draw_heat, draw_image, image_grid, save_figure
from .inputs import add_image_arguments, batches, load_images, load_model, write_table

__all__ = ["add", "find_class", "run"]


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "cam", help="class activation maps (Grad-CAM)",
        description="Draw where each stage finds what speaks for a class: NAME_cam.png for each image, and cam.csv.")
    add_image_arguments(parser, "analysis")
    parser.add_argument("--class", dest="label", metavar="NAME",
                        help="class, by name or index (default: the most probable)")
    parser.add_argument("--stages", type=int, nargs="+", metavar="N",
                        help="stages, or blocks in models without, from 0 (default: all of up to four, else some)")
    parser.set_defaults(run=run)


def find_class(label: str, description: Description) -> int:
    """Index of the class of that name or number.

    Raises:
        UserError: there is none.
    """
    if label in description.label_names:
        return description.label_names.index(label)
    if label.isdecimal() and int(label) < description.num_classes:
        return int(label)
    raise UserError(f"there is no class {label!r}: give a name of the checkpoint or an index below "
                    f"{description.num_classes}{near_names(label, description.label_names)}")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    model, description, device = load_model(args)
    wanted = find_class(args.label, description) if args.label else None
    images = load_images(args.inputs, description)
    found = []
    for batch in batches(images, args.batch_size, device):
        shown = None if wanted is None else torch.full((len(batch),), wanted)
        found.append(class_activation(model, batch, shown, args.stages))
    classes = torch.cat([part.classes for part in found]).tolist()
    probabilities = torch.cat([part.probabilities for part in found]).tolist()
    maps = {stage: torch.cat([part.maps[stage] for part in found]) for stage in found[0].maps}
    make_folder(args.output)
    rows = []
    for i, (image, index, probability) in enumerate(zip(images, classes, probabilities, strict=True)):
        name = description.label_names[index] if description.label_names else str(index)
        figure, axes = image_grid(1, 1 + len(maps), image.shown.shape[0] / image.shown.shape[1])
        draw_image(axes[0, 0], image.shown, f"{name}, {100 * probability:.1f} %")
        for axis, (stage, values) in zip(axes[0, 1:], maps.items(), strict=True):
            heat = resize_maps(values[i:i + 1], (image.shown.shape[0], image.shown.shape[1]))[0]
            draw_heat(axis, image.shown, heat, stage)
            row, column = divmod(int(heat.argmax()), heat.shape[1])
            rows.append({
                "image": image.name, "class": name, "probability": probability, "stage": stage, "peak_row": row,
                "peak_column": column, "coverage": float((normalise_maps(heat) > 0.5).float().mean())})
        save_figure(figure, args.output / f"{image.name}_cam.png")
        print(f"{image.name}: {name} {100 * probability:.1f} %")
    write_table(args.output / "cam.csv", rows)
    return 0
