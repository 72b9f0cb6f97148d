#!/usr/bin/env python3
"""Draw the speed of models against their published accuracy and against the image size, from benchmarks/.

    python tools/plot_performance.py                        # into docs/images
    python tools/plot_performance.py --output-dir FOLDER

A picture that nothing was measured for is not drawn.
"""

import argparse
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from _results import MODES, ROOT, Row, is_ours, published_top1, read_rows, select, several_sizes, side
from performance_tables import AT_128, PICTURES, STEPS

from vmamba.errors import require, tool

ACCURACY, RESOLUTION = PICTURES
MARKERS = {"eager": "o", "compiled": "s", "cudagraph": "^"}


def colours(rows: list[Row]) -> dict[str, Any]:
    """A colour for each model: ours from a palette, those of timm in shades of grey."""
    palette = require("matplotlib").colormaps["tab10"].colors
    models = list(dict.fromkeys(row["model"] for row in rows))
    ours, peers = [m for m in models if is_ours(m)], [m for m in models if not is_ours(m)]
    greys = {m: str(0.7 * i / max(1, len(peers) - 1)) for i, m in enumerate(peers)}
    return {**{m: palette[i % len(palette)] for i, m in enumerate(ours)}, **greys}


def add_legend(figure: Any, rows: list[Row], colour: dict[str, Any]) -> None:
    """Say below the panels which colour is which model (where ``colour`` is not empty), and the markers of modes."""
    line = require("matplotlib.lines").Line2D
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    handles = [line([], [], color=shade, label=model) for model, shade in colour.items()]
    handles += [line([], [], color="black", linestyle="", marker=MARKERS[mode], label=MODES[mode]) for mode in modes]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)


def draw_accuracy(path: Path) -> bool:
    """Images per second at batch 128 against published accuracy: a row for each GPU, a panel for each kind of step."""
    plt, ticker = require("matplotlib.pyplot"), require("matplotlib.ticker")
    measured = [row for row in select(read_rows("models_gpu"), **AT_128) if published_top1(row["model"])]
    if not measured:
        return False
    colour = colours(measured)
    devices = list(dict.fromkeys(row["device"] for row in measured))
    figure, axes = plt.subplots(
        len(devices), len(STEPS), figsize=(13, 0.5 + 5 * len(devices)), layout="constrained", squeeze=False)
    for (device, bench), axis in zip(product(devices, STEPS), axes.flat, strict=True):
        rows = select(measured, device=device, bench=bench)
        names, points = [], []
        for model in dict.fromkeys(row["model"] for row in rows):
            top1 = float(published_top1(model))
            speeds = {row["mode"]: float(row["img_per_s"]) for row in select(rows, model=model)}
            axis.plot([*speeds.values()], [top1] * len(speeds), color=colour[model], linewidth=0.8)
            for mode, speed in speeds.items():
                axis.plot(speed, top1, MARKERS[mode], color=colour[model])
                points.append((speed, top1))
            names.append((max(speeds.values()), top1, model))
        top = write_names(axis, names, points, colour)
        axis.set(xlabel="images per second, measured", ylabel="ImageNet-1K top-1 in %, published", xscale="log",
                 title=f"{STEPS[bench]}, batch 128, 224 x 224, bfloat16, {conditions(rows)}")
        axis.title.set_fontsize(9)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.minorticks_off()
        axis.margins(y=0.1)
        axis.set_ylim(top=max(top, axis.get_ylim()[1]))
        if rows:
            speeds = [float(row["img_per_s"]) for row in rows]
            axis.set_xlim(min(speeds) / 1.2, max(speeds) * 2.5)  # names stand to the right
        axis.grid(alpha=0.3)
    add_legend(figure, measured, {})
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def write_names(
        axis: Any, names: list[tuple[float, float, str]], points: list[tuple[float, float]], colour: dict[str, Any],
) -> float:
    """Names of models to the right of their fastest mode, from the lowest up; returns how far up they reach.

    A name that would cover another or one of the points moves up, and a line leads to it.
    """
    line = 0.03 * max(1.0, max((y for _, y, _ in names), default=0) - min((y for _, y, _ in names), default=0))
    written: list[tuple[float, float]] = []

    def is_free(x: float, y: float) -> bool:
        beside = any(abs(y - other) < line and 0.4 < x / at < 2.5 for at, other in written)
        return not beside and not any(abs(y - other) < line and 1 < at / x < 2.2 for at, other in points)

    for x, y, model in sorted(names, key=lambda name: name[1]):
        at = y
        while not is_free(x, at):
            at += line / 4
        written.append((x, at))
        axis.annotate(
            model.removesuffix("_224"), (x, y), xytext=(x * 1.06, at), textcoords="data", va="center", fontsize=7,
            color=colour[model], arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour[model]})
    return max((at for _, at in written), default=0) + 2 * line


def draw_resolution(path: Path) -> bool:
    """Speed and peak memory, both by pixels, against the image size: a row of panels for each kind of step.

    Of the GPU for which there are most measurements.
    """
    plt = require("matplotlib.pyplot")
    measured = [row for bench in STEPS for row in several_sizes(bench)]
    device, _ = max(Counter(row["device"] for row in measured).items(), key=lambda item: item[1], default=("", 0))
    measured = select(measured, device=device)
    panels = {bench: select(measured, bench=bench) for bench in STEPS}
    if len({row["model"] for row in measured}) < 2:     # nothing to compare
        return False
    colour = colours(measured)
    values = {
        "megapixels per second": lambda row: float(row["img_per_s"]) * side(row) ** 2 / 1e6,
        "peak memory, MiB per megapixel":
            lambda row: float(row["peak_memory_mb"]) / (int(row["batch_size"]) * side(row) ** 2 / 1e6),
    }
    figure, axes = plt.subplots(len(STEPS), 2, figsize=(12, 9.5), layout="constrained")
    for line, (bench, rows) in zip(axes, panels.items(), strict=True):
        sizes = sorted({side(row) for row in rows})
        for axis, (title, value) in zip(line, values.items(), strict=True):
            for model, mode in dict.fromkeys((row["model"], row["mode"]) for row in rows):
                own = sorted(select(rows, model=model, mode=mode), key=side)
                axis.plot(
                    [side(row) for row in own], [value(row) for row in own], color=colour[model],
                    marker=MARKERS[mode], markersize=4, linestyle="-" if is_ours(model) else "--")
            axis.set(xlabel="side of the image in pixels", ylabel=title, xscale="log", yscale="log",
                     title=f"{STEPS[bench]}, bfloat16, {conditions(rows)}")
            axis.set_xticks(sizes, map(str, sizes))
            axis.xaxis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.yaxis.set_minor_formatter("{x:,g}")
            axis.grid(alpha=0.3, which="both")
    add_legend(figure, measured, colour)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def conditions(rows: list[Row]) -> str:
    """Device and days of the measurements, which are of one device."""
    if not rows:
        return "not measured"
    days = sorted({row["date"][:10] for row in rows})
    return f"{rows[0]['device']}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


@tool
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=ROOT / "docs" / "images", metavar="FOLDER")
    folder = parser.parse_args(argv).output_dir
    require("matplotlib").use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in ((ACCURACY, draw_accuracy), (RESOLUTION, draw_resolution)):
        print(f"{'wrote' if draw(folder / name) else 'nothing measured for'} {folder / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
