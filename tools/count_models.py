#!/usr/bin/env python3
"""Count parameters and multiply-adds of models into benchmarks/counts.csv, which tools/performance_tables.py reads.

    python tools/count_models.py                     # all models of the suite, and timm's that its tables show
    python tools/count_models.py vssd_tiny 'vim2_*'  # these; the rows of the others stay

One image of the model's own size goes through it on the meta device, so nothing is computed; multiply-adds are counted
as papers do, see vmamba/ops/_flops.py.
"""

import argparse
import csv
import fnmatch
import sys

import timm
from _counting import count
from _results import ROOT, counts, zoo_models

from vmamba.errors import UserError, tool

COLUMNS = ("model", "img_size", "params", "macs")


def row(name: str) -> dict[str, str]:
    """What the file says of one model."""
    channels, height, width = timm.get_pretrained_cfg(name).input_size
    found = count(timm.create_model(name, device="meta"), 1, channels, height, width)
    return {"model": name, "img_size": f"{height}x{width}", "params": str(found.params), "macs": str(found.macs)}


@tool
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="GLOB", help="models to count; all by default")
    args = parser.parse_args(argv)
    names = zoo_models()
    wanted = [name for name in names if any(fnmatch.fnmatchcase(name, glob) for glob in args.models or ["*"])]
    if not wanted:
        raise UserError(f"no model of the tables is called {' or '.join(args.models)}; see the README's table")
    known = counts() | {name: row(name) for name in wanted}
    with (ROOT / "benchmarks" / "counts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(known[name] for name in names if name in known)
    print(f"counted {len(wanted)} of {len(names)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
