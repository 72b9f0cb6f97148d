"""``analyze.py correlation``: where and in which dimensions states speak for the classes of labelled images."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from vmamba.data import class_names, create_dataset
from vmamba.data.masked_images import MaskedImages, evaluation_view
from vmamba.errors import UserError, require
from vmamba.train.arguments import add_data_arguments
from vmamba.train.checkpoint import Description
from vmamba.train.run_directory import make_folder

from ..class_activation import normalise_maps, resize_maps
from ..correlation import STATES, Correlation, StateRecorder, Tap, external_scores, internal_score, state_correlations
from ..pictures import draw_heat, draw_image, image_grid, plain_logarithms, save_figure, shown_image
from ..recorder import scan_layers
from .inputs import add_weight_arguments, load_model, write_table

__all__ = ["GROUPS", "add", "add_tap_arguments", "chosen_layers", "labelled_images", "run"]

GROUPS = ("simple", "difficult")
SHOWN = 4
DIFFICULT = 0.5


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "correlation", help="state correlation of labelled images (Vision Mamba Mender)",
        description="Score inner states of layers on labelled images: correlation.csv, correlation.png, and "
        "correlation_GROUP.png with maps. Simple images are those classified rightly with --confident or more, "
        f"difficult ones give their class less than {DIFFICULT}.")
    data = add_data_arguments(parser)
    data.add_argument("--split", default="validation", metavar="NAME", help="split to look at")
    data.add_argument("--masks", metavar="DIR", help="folder of the masks of objects: DIR/CLASS/NAME.png")
    data.add_argument("--max-images", type=int, default=1000, metavar="N", help="images, evenly from the split")
    add_weight_arguments(parser, "analysis")
    add_tap_arguments(parser).add_argument(
        "--states", nargs="+", choices=STATES, metavar="STATE",
        help="states: x projected, c convolved, s scanned, z gate, y of the mixer (default: those there are)")
    parser.set_defaults(run=run)


def add_tap_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds what chooses layers, and what counts."""
    group = parser.add_argument_group("states")
    group.add_argument("--layers", nargs="+", metavar="NAME", help="layers that scan (default: the last)")
    group.add_argument("--confident", type=float, default=0.8, metavar="P",
                       help="probability of its class from which an image is simple")
    group.add_argument("--threshold", type=float, default=0.3, metavar="X",
                       help="of maps and dimensions brought to [0, 1], above which they count")
    return group


def chosen_layers(model: Any, layers: Sequence[str] | None) -> list[str]:
    """The layers named, or the last one that scans.

    Raises:
        UserError: The model has none.
    """
    names = scan_layers(model)
    if not names:
        raise UserError(f"{type(model).__name__} runs no scans, which this looks at: it has no states")
    return list(layers or names[-1:])


def _taps(model: Any, image: Tensor, args: argparse.Namespace) -> list[Tap]:
    """The states asked for, or all that the layers have."""
    layers = chosen_layers(model, args.layers)
    if args.states:
        return [Tap(layer, state) for layer in layers for state in args.states]
    with torch.no_grad(), StateRecorder(model, layers) as recorder:
        model(image.unsqueeze(0))
    return [Tap(layer, state) for layer in layers for state in recorder.states(layer)]


def labelled_images(
        args: argparse.Namespace, split: str, description: Description, view: Any, masks: str | Path | None,
) -> MaskedImages:
    """The labelled images of a split, with the model's classes.

    Raises:
        UserError: The data do not fit the model, or masks are missing.
    """
    name = getattr(args, "dataset", "") or ("" if args.data_dir else description.dataset)
    names = description.label_names
    class_map = {label: index for index, label in enumerate(names)} if names and not name else None
    mode = "L" if description.data_config["input_size"][0] == 1 else "RGB"
    dataset = create_dataset(name, args.data_dir, split, class_map=class_map, input_img_mode=mode)
    found = class_names(dataset) or []
    if len(found) > description.num_classes:
        raise UserError(f"the data have {len(found)} classes, but the model {description.num_classes}")
    return MaskedImages(dataset, view, masks)


@dataclass
class _Group:
    """What is known of the images of a group.

    Attributes:
        external: Scores of each image by state.
        internal: Internal correlations [D] of each image by state, and its class.
        shown: An image of each of some classes, its title and its external correlations, by class.
    """

    external: dict[Tap, list[dict[str, float]]] = field(default_factory=dict)
    internal: dict[Tap, list[tuple[int, Tensor]]] = field(default_factory=dict)
    shown: dict[int, tuple[Tensor, str, dict[Tap, Tensor]]] = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if args.max_images < 1 or not 0 < args.threshold < 1 or not DIFFICULT <= args.confident <= 1:
        raise UserError("--max-images must be at least 1, --threshold lie between 0 and 1, --confident between "
                        f"{DIFFICULT} and 1")
    model, description, device = load_model(args)
    chosen_layers(model, args.layers)       # before the data are looked for
    images = labelled_images(args, args.split, description, evaluation_view(description.data_config), args.masks)
    taps = _taps(model, images[0][0].to(device), args)
    count = min(args.max_images, len(images))
    chosen = Subset(images, [i * len(images) // count for i in range(count)])
    groups = {name: _Group() for name in GROUPS}
    others = right = 0
    for pixels, labels, masks in DataLoader(chosen, batch_size=args.batch_size, num_workers=args.workers):
        pixels, labels = pixels.to(device), labels.to(device)
        logits, found = state_correlations(model, pixels, labels, taps)
        probabilities = logits.float().softmax(1)
        own = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
        correct = probabilities.argmax(1) == labels
        right += int(correct.sum())
        members = {"simple": correct & (own >= args.confident), "difficult": own < DIFFICULT}
        others += int((~members["simple"] & ~members["difficult"]).sum())
        for name, rows in members.items():
            if rows.any():
                part = {tap: Correlation(c.external[rows], c.internal[rows]) for tap, c in found.items()}
                known = masks[rows.cpu()] if args.masks else None
                _collect(groups[name], model, pixels[rows], labels[rows], own[rows], part, known, description, args)
    rows = [row for name in GROUPS for tap in taps for row in _row(name, groups[name], tap, args.threshold)]
    print(f"{count} images, {right} classified rightly: " + ", ".join(
        f"{len(group.external.get(taps[0], []))} {name}" for name, group in groups.items()) + f", {others} neither")
    if not rows:
        raise UserError("no image is simple or difficult: nothing is written; lower --confident")
    make_folder(args.output)
    write_table(args.output / "correlation.csv", rows)
    _draw_scores(rows, taps, f"{description.architecture}: states of {count} images", args)
    for name, group in groups.items():
        if group.shown:
            _draw_maps(group, taps, args.output / f"correlation_{name}.png")
    return 0


def _collect(
        group: _Group, model: Any, pixels: Tensor, labels: Tensor, own: Tensor, found: dict[Tap, Correlation],
        masks: Tensor | None, description: Description, args: argparse.Namespace,
) -> None:
    """Adds the images of a batch that belong to the group."""
    names = description.label_names
    for i, index in enumerate(labels.tolist()):
        if len(group.shown) < SHOWN and index not in group.shown:
            group.shown[index] = (
                shown_image(pixels[i], description.data_config),
                f"{names[index] if names else index}, {100 * float(own[i]):.0f} %",
                {tap: c.external[i].cpu() for tap, c in found.items()})
    for tap, correlation in found.items():
        scores = external_scores(model, pixels, labels, correlation.external, masks, args.threshold)
        columns = {"external_score": scores.score, "inside": scores.inside, "outside": scores.outside,
                   "coverage": scores.coverage, **({} if scores.overlap is None else {"overlap": scores.overlap})}
        table = {name: values.tolist() for name, values in columns.items()}
        group.external.setdefault(tap, []).extend(
            dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True))
        group.internal.setdefault(tap, []).extend(zip(labels.tolist(), correlation.internal.cpu(), strict=True))


def _row(name: str, group: _Group, tap: Tap, threshold: float) -> list[dict[str, Any]]:
    """The numbers of a state in a group: median of the scores, which are ratios, means of what they are made of."""
    images = group.external.get(tap)
    if not images:
        return []
    by_class: dict[int, list[Tensor]] = {}
    for label, internal in group.internal[tap]:
        by_class.setdefault(label, []).append(internal)
    inner = [internal_score(torch.stack(rows), threshold) for rows in by_class.values() if len(rows) > 1]

    def mean_of(values: list[float]) -> float:
        return fmean(values) if values else float("nan")

    return [{
        "layer": tap.layer, "state": tap.state, "group": name, "images": len(images),
        "external_score": median(row["external_score"] for row in images),
        **{key: mean_of([row[key] for row in images if key in row])
           for key in ("inside", "outside", "coverage", "overlap")},
        "classes_of_two": len(inner), "internal_score": mean_of([score.score for score in inner]),
        "density": mean_of([score.density for score in inner]),
        "agreement": mean_of([score.agreement for score in inner])}]


def _draw_scores(rows: list[dict[str, Any]], taps: list[Tap], title: str, args: argparse.Namespace) -> None:
    """Bars of both scores for each state, simple beside difficult images."""
    figure = require("matplotlib.figure").Figure(
        figsize=(max(5.0, 0.5 * len(taps) + 2), 5.5), layout="constrained", dpi=100)
    axes = figure.subplots(2, 1, sharex=True)
    for offset, group in zip((-0.2, 0.2), GROUPS, strict=True):
        known = {Tap(row["layer"], row["state"]): row for row in rows if row["group"] == group}
        places = [i for i, tap in enumerate(taps) if tap in known]
        for axis, what in zip(axes, ("external_score", "internal_score"), strict=True):
            axis.bar([i + offset for i in places], [known[taps[i]][what] for i in places], width=0.4, label=group)
    for axis, name in zip(axes, ("external score, median", "internal score, mean of classes"), strict=True):
        axis.set_ylabel(name, fontsize=8)
        axis.tick_params(labelsize=7, which="both")
        axis.grid(alpha=0.3, axis="y")
    plain_logarithms(axes[0])
    axes[0].legend(fontsize=7)
    names = [f"{tap.layer.removesuffix('.mixer')} {tap.state}" for tap in taps]
    axes[1].set_xticks(range(len(taps)), names, rotation=90)
    figure.suptitle(title, fontsize=9)
    save_figure(figure, args.output / "correlation.png")


def _draw_maps(group: _Group, taps: list[Tap], path: Path) -> None:
    """A row for each image: itself, and the external correlation of each state."""
    found = list(group.shown.values())
    shape = found[0][0].shape
    figure, axes = image_grid(len(found), 1 + len(taps), shape[0] / shape[1])
    for row, (shown, title, maps) in zip(axes, found, strict=True):
        draw_image(row[0], shown, title)
        for axis, tap in zip(row[1:], taps, strict=True):
            heat = normalise_maps(resize_maps(maps[tap].unsqueeze(0), (shape[0], shape[1])))[0]
            draw_heat(axis, shown, heat, f"{tap.layer.removesuffix('.mixer')} {tap.state}")
    save_figure(figure, path)
