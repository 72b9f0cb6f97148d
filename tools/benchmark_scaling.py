#!/usr/bin/env python3
r"""How training scales: images a second of all processes together, over those of one alone times their number.

    torchrun --nproc-per-node 2 tools/benchmark_scaling.py vmamba_tiny --batch-size 128 --amp-dtype bfloat16 \
        --results-file benchmarks/scaling_gpu.csv
    torchrun --nproc-per-node 2 tools/benchmark_scaling.py test_vmamba --device cpu --img-size 32 --batch-size 4

A step is forward, cross-entropy, backward and an AdamW update, on random images that are on the device already, by
DistributedDataParallel over NCCL (gloo on CPUs). Rounds of steps alternate: the first process alone, without
communication, while the others wait; then all of them, each with as many images. The efficiency is the median over
the rounds, so that a machine that is busy with something else slows both alike.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _bench
import torch
from benchmark import build_model, make_step
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from vmamba.errors import tool
from vmamba.train.model import build_classifier

COLUMNS = ("model", "params_m", "processes", "batch_size", "img_size", "amp_dtype", "mode", "backend", "rounds",
           "steps", "img_per_s_one", "img_per_s_all", "efficiency")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL", help="timm model name")
    add("--batch-size", type=_bench.positive, default=128, metavar="N", help="images a step and process (128)")
    add("--img-size", type=_bench.positive, metavar="N", help="square inputs (default: the model's own)")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="run under autocast (default: float32)")
    add("--mode", choices=("eager", "compiled"), default="eager", help="as it is, or torch.compile")
    add("--rounds", type=_bench.positive, default=10, metavar="N", help="rounds to time (10)")
    add("--steps", type=_bench.positive, default=10, metavar="N", help="steps of a round, each way (10)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    add("--threads", type=_bench.positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--results-file", type=Path, metavar="CSV", help="append the results to this file")
    return parser.parse_args(argv)


def seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """The time of so many steps, all of them done at the end."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The row of the results; every process calls it, and the first one's is right."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    amp_dtype = getattr(torch, args.amp_dtype) if args.amp_dtype else None
    steps = {}
    for name in ("one", "all") if rank == 0 else ("all",):
        model, shape = build_model(args.model, args.img_size, device)
        model = torch.compile(model) if args.mode == "compiled" else model
        if name == "all":
            model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        steps[name] = make_step(model, torch.randn(args.batch_size, *shape, device=device), True, amp_dtype)
    times: dict[str, list[float]] = {"one": [], "all": []}
    for _ in range(args.rounds + 1):
        for name in ("one", "all"):
            distributed.barrier()
            if name in steps:
                times[name].append(seconds(steps[name], args.steps, device) / args.steps)
    slowest = torch.tensor(times["all"], device=device)     # of the processes, in each round
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    # the first round was for warming up
    one, every = times["one"][1:] or [math.nan], slowest.tolist()[1:]
    return {
        "model": args.model, "params_m": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}",
        "processes": world_size, "batch_size": args.batch_size, "img_size": "x".join(map(str, shape[1:])),
        "amp_dtype": args.amp_dtype or "", "mode": args.mode, "backend": distributed.get_backend(),
        "rounds": args.rounds, "steps": args.steps,
        "img_per_s_one": f"{args.batch_size / statistics.median(one):.2f}",
        "img_per_s_all": f"{world_size * args.batch_size / statistics.median(every):.2f}",
        "efficiency": f"{statistics.median(a / b for a, b in zip(one, every, strict=False)):.4f}",
    }


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    build_classifier(args.model, device="meta")     # a wrong name is known before anything starts
    place = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if args.device == "cuda" else args.device
    device = _bench.select_device(place, args.threads)
    alone = {} if "RANK" in os.environ else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", **alone)
    try:
        report = _bench.Report(COLUMNS, device, args.results_file if distributed.get_rank() == 0 else None)
        row = measure(args, device)
        if distributed.get_rank() == 0:
            report.add([row])
            print(_bench.markdown_table(COLUMNS, report.rows))
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
