#!/usr/bin/env python3
r"""Parameters, FLOPs and latency of detectors and segmentors, at the sizes papers report them for.

    python tools/openmmlab_flops.py configs/mmdet/mask_rcnn_vmamba_tiny_fpn_1x_coco.py
    python tools/openmmlab_flops.py configs/mmseg/*vmamba_tiny*.py --no-latency
    python tools/openmmlab_flops.py A.py B.py --shape 512 512 --device cuda --results-file results.csv

Default size: 800 x 1280 (height x width) for mmdet, 512 x 2048 for mmseg. FLOPs are counted as the papers do, a
multiply-add as one: matrix products, convolutions and scans by torch.utils.flop_counter, which knows the scans from
vmamba.ops. Norms, activations and interpolation are not counted. The weights and the image are random; a two-stage
detector works on the proposals that it makes of them.
"""
import argparse
import sys
from typing import Any

import _bench
import torch
from _openmmlab import TOOLBOXES, config_errors, load_config, without_sync_batchnorm
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vmamba.errors import UserError, require, tool

SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}
COLUMNS = ("model", "task", "size", "params_m", "gflops", "median_ms", "p20_ms", "p80_ms", "time_ratio", "num_iter")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("configs", nargs="+", metavar="CONFIG", help="configs of mmdet or mmseg")
    add("--shape", type=int, nargs=2, metavar=("H", "W"), help="height and width of the image in pixels")
    add("--no-latency", action="store_true", help="count only, do not time")
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.shape and min(args.shape) < 32:
        raise UserError(f"--shape must be at least 32 32, not {' '.join(map(str, args.shape))}")
    return args


class Candidate:
    """A model with random weights, and a forward pass of it on a random image.

    Args:
        path: its config.
        shape: height and width of the image; None for the toolbox's usual one.
        device: where to run.
    """

    def __init__(self, path: str, shape: tuple[int, int] | None, device: torch.device):
        config = load_config(path)
        self.scope = config.default_scope
        config.model.backbone.pretrained = False
        without_sync_batchnorm(config.model)
        with config_errors(f"cannot build {path}"):
            model = require(f"{self.scope}.registry", "openmmlab").MODELS.build(config.model)
        self.model = model.to(device).eval()
        self.size = shape or SIZES[self.scope]
        self.data = self._sample(torch.randint(0, 256, (3, *self.size), dtype=torch.uint8))

    def _sample(self, image: Tensor) -> Any:
        """What the model's test_step takes: one image, which nothing has resized."""
        structures = require(f"{self.scope}.structures", "openmmlab")
        sample = structures.DetDataSample() if self.scope == "mmdet" else structures.SegDataSample()
        sample.set_metainfo({"img_shape": self.size, "ori_shape": self.size, "pad_shape": self.size,
                             "batch_input_shape": self.size, "scale_factor": (1.0, 1.0)})
        data = self.model.data_preprocessor({"inputs": [image], "data_samples": [sample]}, False)
        return data["inputs"], data["data_samples"]

    @torch.inference_mode()
    def __call__(self) -> object:
        """One forward pass without post-processing."""
        return self.model(*self.data, mode="tensor")

    def gflops(self) -> float:
        """Billions of multiply-adds of a forward pass."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() / 2e9


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = _bench.select_device(args.device, args.threads)
    report = _bench.Report(COLUMNS, device, args.results_file)
    paths = list(dict.fromkeys(args.configs))
    candidates = {path: Candidate(path, args.shape and tuple(args.shape), device) for path in paths}
    rows: list[dict[str, object]] = []
    for path, candidate in candidates.items():
        print(f"counting {path}", file=sys.stderr)
        params = sum(p.numel() for p in candidate.model.parameters())
        rows.append({
            "model": path, "task": TOOLBOXES[candidate.scope], "size": "x".join(map(str, candidate.size)),
            "params_m": f"{params / 1e6:.2f}", "gflops": f"{candidate.gflops():.2f}"})
    if not args.no_latency:
        for candidate in candidates.values():
            for _ in range(args.num_warm_iter):
                candidate()
        timings = _bench.time_interleaved(
            candidates, device, num_iter=args.num_iter, min_time=args.min_time, baseline=paths[0])
        rows = [row | timings[path].columns() for path, row in zip(paths, rows, strict=True)]
    else:
        rows = [dict.fromkeys(COLUMNS, "") | row for row in rows]
    report.add(rows)
    if args.no_latency:
        print(_bench.markdown_table(COLUMNS[:5], rows))
    else:
        report.print(COLUMNS, paths[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
