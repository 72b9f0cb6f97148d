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
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    for which, marker in (("forward", "o"), ("backward", "s")):
        chosen = [row for row in rows if row["pass"] == which]
        x = [int(row["exponentials"]) / int(row["least_bytes"]) for row in chosen]
        y = [max(float(row["copy_bandwidth_percent"]), float(row["special_function_percent"])) for row in chosen]
        axes.scatter(x, y, marker=marker, label=which)
        for a, b, row in zip(x, y, chosen, strict=True):
            axes.annotate(row["case"], (a, b), textcoords="offset points", xytext=(4, 4), fontsize=7)
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
