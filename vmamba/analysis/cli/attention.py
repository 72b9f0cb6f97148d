"""``analyze.py attention``: what a pixel reads through the scans of a layer, who reads it, and the states."""
from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from vmamba.errors import UserError
from vmamba.train.run_directory import make_folder

from ..attention import ScanMaps, scan_maps
from ..pictures import draw_heat, image_grid, save_figure
from ..recorder import record_scans, scan_layers
from ..scans import Scan
from .inputs import Photograph, add_image_arguments, load_images, load_model, write_table

__all__ = ["add", "run"]

MOST_LAYERS = 4
MOST_PANELS = 8


def add(commands: Any) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "attention", help="implicit attention and states of the scans, for a pixel",
        description="Draw, for a pixel, what its place reads by each direction of a layer's scan, which places read "
        "it, and how large the state is: NAME_LAYER.png for each image and layer, and attention.csv.")
    add_image_arguments(parser, "analysis")
    group = parser.add_argument_group("what to look at")
    group.add_argument("--pixel", type=int, nargs=2, metavar=("ROW", "COLUMN"),
                       help="pixel of the image as the model takes it (default: the middle)")
    group.add_argument("--class-token", action="store_true", help="look at the class token instead of a pixel")
    group.add_argument("--layers", nargs="+", metavar="NAME",
                       help="layers that scan (default: all of up to four, else four); 'list' lists them")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if args.pixel and args.class_token:
        raise UserError("--pixel and --class-token are two things to look at: give one of them")
    model, description, device = load_model(args)
    names = scan_layers(model)
    if args.layers == ["list"]:
        print("\n".join(names))
        return 0
    height, width = description.data_config["input_size"][1:]
    pixel = tuple(args.pixel or (height // 2, width // 2))
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise UserError(f"--pixel {pixel[0]} {pixel[1]} is not in the image, which the model takes as {height}x{width}")
    images = load_images(args.inputs, description)
    layers = args.layers or _evenly(names)
    for scan in record_scans(model, images[0].pixels.unsqueeze(0).to(device), layers):
        _place(scan, pixel, (height, width), args.class_token)      # fails before anything is written
    make_folder(args.output)
    rows = []
    for image in images:
        for number, scan in enumerate(record_scans(model, image.pixels.unsqueeze(0).to(device), layers)):
            maps = scan_maps(scan, _place(scan, pixel, (height, width), args.class_token))
            several = number and f"_{scan.size[0]}x{scan.size[1]}" * (layers.count(scan.layer) > 1)
            rows += _rows(image, maps, (height, width))
            _draw(image, maps, None if args.class_token else pixel, args, f"{scan.layer}{several or ''}")
        print(f"{image.name}: {len(layers)} layers")
    write_table(args.output / "attention.csv", rows)
    return 0


def _evenly(names: list[str]) -> list[str]:
    """Up to four of the names, evenly spaced, the last among them."""
    if len(names) <= MOST_LAYERS:
        return names
    return [names[len(names) * (i + 1) // MOST_LAYERS - 1] for i in range(MOST_LAYERS)]


def _place(scan: Scan, pixel: tuple[int, ...], size: tuple[int, int], class_token: bool) -> int:
    """Place of a pixel on the map of a scan."""
    h, w = scan.size
    if class_token:
        if not scan.class_token:
            raise UserError(f"{scan.layer} scans no class token: leave --class-token out")
        return h * w
    # maps may reach beyond the image, where stems and patches pad it
    return min(pixel[0] * h // size[0], h - 1) * w + min(pixel[1] * w // size[1], w - 1)


def _rows(image: Photograph, maps: ScanMaps, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Numbers of each direction, and of all together."""
    rows = []
    for relation, apart, merged in (
            ("reads", maps.reads, maps.reads_merged), ("is read", maps.is_read, maps.is_read_merged)):
        named = [*((str(k), apart[k, 0]) for k in range(len(apart))), ("merged", merged[0])]
        for direction, weights in named:
            if weights.any():       # a window or an atrous walk may not visit the place
                rows.append({
                    "image": image.name, "layer": maps.scan.layer, "map": "x".join(map(str, maps.scan.size)),
                    "relation": relation, "direction": direction, **_measures(maps, weights, size)})
    return rows


def _measures(maps: ScanMaps, weights: Tensor, size: tuple[int, int]) -> dict[str, float]:
    """How a distribution of weights over places [places] lies around its token."""
    h, w = maps.scan.size
    share = weights / weights.sum()
    spread = float(torch.exp(-(share * share.clamp(min=1e-300).log()).sum()))
    skip = maps.scan.D_skip
    found = {"total": float(weights.sum()), "skip": float("nan") if skip is None else float(skip.detach().abs().mean())}
    found |= {"own_share": float(share[maps.place]), "effective_places": spread}
    patches = share[:h * w]
    row, column = divmod(maps.place, w)
    rows, columns = torch.arange(h * w) // w, torch.arange(h * w) % w
    away = torch.hypot((rows - row) * size[0] / h, (columns - column) * size[1] / w).to(share)
    on_map = maps.place < h * w and patches.any()
    found["mean_distance_px"] = float((patches * away).sum() / patches.sum()) if on_map else float("nan")
    found["class_token_share"] = float(share[h * w]) if maps.scan.class_token else float("nan")
    return found


def _draw(
        image: Photograph, maps: ScanMaps, pixel: tuple[int, ...] | None, args: argparse.Namespace, name: str) -> None:
    """A column for each direction and for all together; rows: what the pixel reads, who reads it, the states."""
    scan = maps.scan
    h, w = scan.size
    visited = [k for k in range(scan.directions) if maps.reads[k].any()]
    shown = [] if scan.windows else visited[:MOST_PANELS]
    columns: list[tuple[str, Tensor, Tensor, Tensor]] = [
        (f"direction {k}", maps.reads[k, 0], maps.is_read[k, 0], maps.states[k, 0]) for k in shown]
    columns.append(("all directions", maps.reads_merged[0], maps.is_read_merged[0], maps.states.sum(0)[0]))
    at = (float(pixel[0]), float(pixel[1])) if pixel else None
    what = f"pixel {pixel[0]}, {pixel[1]}" if pixel else "the class token"
    figure, axes = image_grid(
        3, len(columns), image.shown.shape[0] / image.shown.shape[1], f"{scan.layer}, {h} x {w}: {what}")
    for column, (title, *rows) in enumerate(columns):
        for axis, kind, values in zip(axes[:, column], ("reads", "is read by", "state after"), rows, strict=True):
            draw_heat(axis, image.shown, values[:h * w].view(h, w), f"{title}: {kind}", at, smooth=False)
    save_figure(figure, args.output / f"{image.name}_{name.replace('.', '-')}.png")
