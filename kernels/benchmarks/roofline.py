"""Draw the rows of a results CSV against the two ceilings: copy bandwidth and special functions.

python kernels/benchmarks/roofline.py kernels/benchmarks/results.csv roofline.png
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt


def main() -> None:
    """Read the rows, draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    with args.results.open() as file:
        rows = [row for row in csv.DictReader(file) if row["pass"] in ("forward", "backward")]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, axes = plt.subplots(figsize=(12, 6), layout="constrained")
    for which, marker, side in (("forward", "o", -1), ("backward", "s", 1)):
        chosen = [row for row in rows if row["pass"] == which]
        x = [int(row["exponentials"]) / int(row["least_bytes"]) for row in chosen]
        y = [max(float(row["copy_bandwidth_percent"]), float(row["special_function_percent"])) for row in chosen]
        axes.scatter(x, y, marker=marker, label=which)
        for a, b, row in zip(x, y, chosen, strict=True):
            number = str(cases.index(row["case"]) + 1)
            axes.annotate(number, (a, b), textcoords="offset points", xytext=(6 * side, 0),
                          ha="right" if side < 0 else "left", va="center", fontsize=9)  # fmt: skip
    axes.text(1.02, 1, "\n".join(f"{i:2} {case}" for i, case in enumerate(cases, 1)), transform=axes.transAxes,
              va="top", family="monospace", fontsize=9)  # fmt: skip
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set(
        xscale="log",
        xlabel="exponentials per byte that must move",
        ylabel="percent of the nearer ceiling",
        ylim=(0, 105),
    )
    runs = dict.fromkeys(f"{row['device']}, {row['date']}, commit {row['commit']}" for row in rows)
    axes.set_title("\n".join(runs), fontsize=9)
    axes.legend()
    figure.savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
