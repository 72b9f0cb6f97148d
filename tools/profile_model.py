#!/usr/bin/env python3
r"""Say where a GPU spends the time of a step: kernels of one model, added up by what they compute.

Examples:
    python tools/profile_model.py vmamba_tiny_s1l8 --batch-size 128 --bench inference train --mode eager compiled \
        --amp-dtype bfloat16 --results-file benchmarks/profile_gpu.csv
    python tools/profile_model.py vmamba_tiny_s1l8 --batch-size 6 --img-size 1024 --kernels 20

A step is as in tools/benchmark.py. Its kernels are timed by the driver through torch.profiler; what is left of the
step, when no kernel runs, is "idle": the GPU waits for the next launch.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import _bench
import benchmark
import torch
from torch.profiler import ProfilerActivity, profile

from vmamba.errors import UserError, tool
from vmamba.train.model import build_classifier

CSV_COLUMNS = (
    "bench", "model", "params_m", "batch_size", "img_size", "amp_dtype", "channels_last", "mode", "step_ms", "part",
    "ms", "percent", "launches", "num_iter")
TABLE_COLUMNS = ("model", "bench", "mode", "batch_size", "img_size", "part", "ms", "percent", "launches")
# what a kernel computes, by the first of these that its name holds; names of our own kernels stand whole, because
# cuDNN's convolutions are called "..._fprop_implicit_gemm_..._execute_segment_k_off_kernel__5x_cudnn"
PARTS = (
    ("optimizer", r"adam|multi_tensor"),
    ("compiled pointwise and reductions", r"^triton_(poi|red|per)"),
    ("scan", r"^(ss2d_(fwd|bwd)_kernel_n1|scan_(fwd|bwd)_kernel|segment_kernel|chain_kernel|arrange_kernel"
             r"|gather_kernel|dproj_kernel|assemble_kernel|gate_bwd_kernel|ssd_\w+_kernel)\b"),
    ("merge, residual and LayerNorm", r"merge|layer_?norm"),
    ("depthwise convolution and SiLU", r"^conv_kernel|conv_silu|depthwise|dwconv"),
    ("neighbourhood attention", r"^(weights|spread|scores_backward|window_gather)_kernel\b"),
    ("GELU", r"gelu"),
    ("attention", r"flash|fmha|attention|sdpa"),
    ("convolutions", r"conv|cudnn|dgrad|wgrad|fprop|nchwToNhwc|nhwcToNchw"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|splitKreduce|^triton_tem"),
    ("copies and fills", r"memcpy|memset|copy|fill|CatArray"),
    ("reductions", r"reduce|softmax"),
    ("pointwise", r"elementwise"),
)
_PATTERNS = tuple((part, re.compile(pattern, re.IGNORECASE)) for part, pattern in PARTS)


def part_of(kernel: str) -> str:
    """What a kernel of this name computes; "other" if none of `PARTS` says."""
    return next((part for part, pattern in _PATTERNS if pattern.search(kernel)), "other")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="timm model names")
    add("--channels-last", nargs="*", default=[], metavar="MODEL", help="channels_last memory format for these")
    add("--kernels", type=_bench.positive, metavar="N", help="also print the N kernels that take longest")
    benchmark.add_setting_arguments(parser)
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    args.baseline = ""
    return args


def kernel_times(step: Callable[[], object], num_iter: int) -> dict[str, tuple[float, int]]:
    """Milliseconds and launches per step of each kernel, by name."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(num_iter):
            step()
        torch.cuda.synchronize()
    times: dict[str, list[float]] = defaultdict(list)
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            times[event.name].append(event.device_time_total / 1e3)
    return {name: (sum(each) / num_iter, round(len(each) / num_iter)) for name, each in times.items()}


def breakdown(kernels: dict[str, tuple[float, int]], step_ms: float) -> list[dict[str, object]]:
    """Milliseconds, share of the step and launches of each part, longest first, and of the time without a kernel."""
    parts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for name, (ms, launches) in kernels.items():
        total = parts[part_of(name)]
        total[0] += ms
        total[1] += launches
    idle = step_ms - sum(ms for ms, _ in parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1][0])
    if idle > 0:
        ordered.append(("idle", [idle, 0]))
    return [
        {"part": part, "ms": f"{ms:.3f}", "percent": f"{100 * ms / step_ms:.1f}", "launches": round(launches)}
        for part, (ms, launches) in ordered
    ]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    if args.device.type != "cuda":
        raise UserError("kernels are profiled on a CUDA device; time a CPU with tools/benchmark.py")
    for name in args.models:
        build_classifier(name, device="meta")  # a wrong name is known before the first is measured
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    for train, mode, img_size, batch_size in benchmark.settings(args):
        for name in args.models:
            torch._dynamo.reset()
            build = partial(benchmark.build_model, name, img_size, args.device)
            step, columns = benchmark.prepare(build, batch_size, train, mode, name in args.channels_last, args)
            timing = _bench.time_interleaved({name: step}, args.device, num_iter=args.num_iter)[name]
            kernels = kernel_times(step, args.num_iter)
            own = {column: columns[column] for column in CSV_COLUMNS if column in columns}
            own |= {"model": name, "step_ms": f"{timing.median:.3f}", "num_iter": args.num_iter}
            report.add([own | part for part in breakdown(kernels, timing.median)])
            longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:args.kernels or 0]
            for kernel, (ms, launches) in longest:
                print(f"{ms:9.3f} ms {launches:5} x  {part_of(kernel):32} {kernel[:100]}")
    print(_bench.markdown_table(TABLE_COLUMNS, report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
