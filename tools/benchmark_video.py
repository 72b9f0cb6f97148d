#!/usr/bin/env python3
r"""Time a model of clips at several numbers of frames, in one interleaved run.

Example:
    python tools/benchmark_video.py --model videomamba_tiny --frames 8 16 64 --img-size 224 --batch-size 8 \
        --bench inference train --amp-dtype bfloat16 --results-file benchmarks/video_gpu.csv

Measured as by tools/benchmark.py; the ratio is to the first number of frames. Where time and memory are linear in the
frames, the ratio is that of the frames, and frames_per_s stays what it is.
"""

import argparse
import sys
from functools import partial

import _bench
import benchmark
import torch

from vmamba.errors import tool
from vmamba.train.model import build_classifier

CSV_COLUMNS = ("frames", "frames_per_s", *benchmark.CSV_COLUMNS)
TABLE_COLUMNS = ("frames", "bench", "mode", "batch_size", "img_size", "frames_per_s", *benchmark.RESULT_COLUMNS)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="videomamba_tiny", help="a model of clips (videomamba_tiny)")
    add("--frames", type=_bench.positive, nargs="+", default=[8, 16, 64], metavar="N", help="frames a clip (8 16 64)")
    benchmark.add_setting_arguments(parser)
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    args.frames = list(dict.fromkeys(args.frames))
    args.baseline, args.channels_last = str(args.frames[0]), []
    return args


def build_clips(
        name: str, frames: int, img_size: int | None, device: torch.device,
) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """Create an untrained model and the shape (channels, frames, height, width) it is to be timed at."""
    size = img_size or 224
    model = build_classifier(name, device=device, num_frames=frames, img_size=size)
    return model, (3, frames, size, size)


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    build_classifier(args.model, device="meta", num_frames=args.frames[0])  # a wrong name is known before measuring
    planned = list(benchmark.settings(args))
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    for train, mode, img_size, batch_size in planned:
        builders = {
            str(frames): partial(build_clips, args.model, frames, img_size, args.device) for frames in args.frames}
        rows = benchmark.measure(builders, batch_size, train, mode, args)
        report.add([{
            **row, "frames": row["model"], "model": args.model,
            "frames_per_s": f"{int(row['model']) * float(row['img_per_s']):.1f}"} for row in rows])
    report.print(TABLE_COLUMNS, f"{args.baseline} frames")
    return 0 if len(report.rows) == len(planned) * len(args.frames) else 1


if __name__ == "__main__":
    sys.exit(main())
