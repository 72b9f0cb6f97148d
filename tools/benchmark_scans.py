#!/usr/bin/env python3
r"""Compare what scan orders cost in time: one model with each of them, in one interleaved run.

Examples:
    python tools/benchmark_scans.py --img-size 224 --batch-size 128 --bench inference train --amp-dtype bfloat16 \
        --results-file benchmarks/scans_gpu.csv
    python tools/benchmark_scans.py --model vmamba_nano --scans cross hilbert4 --img-size 64 --device cpu

Measured as by tools/benchmark.py; the ratio is to the order `cross`.
"""

import argparse
import sys
from functools import partial

import _bench
import benchmark

from vmamba.errors import tool
from vmamba.scans import default_directions, list_scans, scan_tokens
from vmamba.train.model import build_classifier

BASELINE = "cross"
CSV_COLUMNS = ("scan", *benchmark.CSV_COLUMNS)
TABLE_COLUMNS = ("scan", "bench", "mode", "batch_size", "img_size", *benchmark.RESULT_COLUMNS)


def four_directions() -> list[str]:
    """The registered orders of four directions over the tokens of one map."""
    return [name for name in list_scans() if default_directions(name) == 4 and scan_tokens(name, 1, 1) == 1]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="vmamba_tiny_s1l8", help="a model that takes scan= (vmamba_tiny_s1l8)")
    add("--scans", nargs="+", default=four_directions(), metavar="NAME",
        help="scan orders (default: all registered ones of four directions)")
    benchmark.add_setting_arguments(parser)
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    args.scans = list(dict.fromkeys([BASELINE, *args.scans]))
    args.baseline, args.channels_last = BASELINE, []
    return args


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    for scan in args.scans:
        build_classifier(args.model, device="meta", scan=scan)  # a wrong name is known before the first is measured
    planned = list(benchmark.settings(args))
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    for train, mode, img_size, batch_size in planned:
        builders = {
            scan: partial(benchmark.build_model, args.model, img_size, args.device, scan=scan) for scan in args.scans}
        rows = benchmark.measure(builders, batch_size, train, mode, args)
        report.add([{**row, "scan": row["model"], "model": args.model} for row in rows])
    report.print(TABLE_COLUMNS, BASELINE)
    return 0 if len(report.rows) == len(planned) * len(args.scans) else 1


if __name__ == "__main__":
    sys.exit(main())
