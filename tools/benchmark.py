#!/usr/bin/env python3
r"""Compare the speed of timm models, ours or any other, in one interleaved run.

Every round runs each model once, so a machine that is busy with something else slows all of them alike; the ratio to
the baseline is taken within the rounds. Inputs are random and already on the device: data loading is not measured.

Examples:
    python tools/benchmark.py swin_tiny_patch4_window7_224 vmamba_tiny_s1l8 --device cpu --batch-size 1 8
    python tools/benchmark.py vmamba_tiny convnext_tiny --channels-last convnext_tiny --bench inference train \
        --mode eager compiled --batch-size 128 --amp-dtype bfloat16 --results-file results.csv
    python tools/benchmark.py vmamba_tiny convnext_tiny --mode eager cudagraph --amp-dtype bfloat16    # latency
    python tools/benchmark.py vmamba_tiny convnext_tiny --img-size 224 448 768 1024 --batch-size 128 --same-pixels

An inference step is a forward pass; a training step is forward, cross-entropy, backward and an AdamW update (fused on
a GPU). Each step begins when the one before is done, so that at batch size 1 its time is the latency. Peak memory (GPU
only) counts the model, gradients, optimizer state and activations.

How fast images are read and augmented, without any model, `--loader` measures; what follows are the options of
tools/benchmark_loader.py. How training scales over several GPUs, tools/benchmark_scaling.py measures.

    python tools/benchmark.py --loader --num-workers 1 2 4 -- -c RECIPE --data-dir DIR
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import _bench
import benchmark_loader
import torch

from vmamba.errors import UserError, tool
from vmamba.train.model import build_classifier

SETTING_COLUMNS = (
    "bench", "model", "params_m", "batch_size", "img_size", "amp_dtype", "channels_last", "mode", "baseline")
RESULT_COLUMNS = ("img_per_s", "median_ms", "p20_ms", "p80_ms", "time_ratio", "peak_memory_mb", "num_iter")
CSV_COLUMNS = (*SETTING_COLUMNS, *RESULT_COLUMNS)
MODES = {  # how a model runs, and the arguments of torch.compile for it
    "eager": None, "compiled": {}, "cudagraph": {"mode": "reduce-overhead"}}
TABLE_COLUMNS = ("model", "bench", "mode", "batch_size", "img_size", "params_m", *RESULT_COLUMNS)

Builder = Callable[[], tuple[torch.nn.Module, tuple[int, int, int]]]
"""Makes a model on the device it is to be timed on, and says its input shape (channels, height, width)."""


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options on what to measure of each candidate."""
    add = parser.add_argument
    add("--bench", nargs="+", choices=("inference", "train"), default=["inference"], help="steps to time")
    add("--mode", nargs="+", choices=MODES, default=["eager"],
        help="as it is, torch.compile, or torch.compile with CUDA graphs (reduce-overhead)")
    add("--batch-size", type=_bench.positive, nargs="+", default=[1], metavar="N")
    add("--img-size", type=_bench.positive, nargs="+", default=[None], metavar="N",
        help="square inputs (default: the model's own)")
    add("--same-pixels", action="store_true",
        help="batch sizes are for the first --img-size; other sizes get as many pixels")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="run under autocast (default: float32)")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="timm model names")
    add("--baseline", metavar="MODEL", help="model the ratios refer to (default: the first)")
    add("--channels-last", nargs="*", metavar="MODEL", help="channels_last memory format, for all models or these")
    add_setting_arguments(parser)
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    args.models = list(dict.fromkeys(args.models))
    args.baseline = args.baseline or args.models[0]
    for option, names in (("--baseline", [args.baseline]), ("--channels-last", args.channels_last or [])):
        for name in names:
            if name not in args.models:
                parser.error(f"{option} {name} is not one of the models")
    args.channels_last = args.models if args.channels_last == [] else args.channels_last or []
    return args


def build_model(
        name: str, img_size: int | None, device: torch.device, **model_args: object,
) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    """Create an untrained model and the input shape (channels, height, width) it is to be timed at.

    Raises:
        UserError: timm does not know the model or argument, or the model does not take images of this size.
    """
    model = build_classifier(name, device=device, **model_args)
    channels, *native = model.pretrained_cfg["input_size"]
    size = (img_size, img_size) if img_size else tuple(native)
    if list(size) == native:
        return model, (channels, *size)
    try:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, channels, *size, device=device))
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:     # each model has its own way to refuse a size
        raise UserError(f"{name} does not take images of {size[0]}x{size[1]}: {error}") from error
    return model, (channels, *size)


def make_step(
        model: torch.nn.Module, x: torch.Tensor, train: bool, amp_dtype: torch.dtype | None) -> Callable[[], object]:
    """The function to time: one forward pass, or one training step with an AdamW update.

    Args:
        model: Model on the device of `x`.
        x: Images [B, C, H, W].
        train: Time a training step.
        amp_dtype: Run forward and loss under autocast to this dtype.
    """
    autocast = torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None)
    if not train:
        model.eval()

        def infer() -> object:
            with torch.inference_mode(), autocast:
                return model(x)

        return infer

    model.train()
    target = torch.arange(x.shape[0], device=x.device) % 10
    loss_fn = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=x.is_cuda)
    scaler = torch.amp.GradScaler(x.device.type, enabled=amp_dtype is torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            loss = loss_fn(model(x), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def prepare(
        build: Builder, batch_size: int, train: bool, mode: str, channels_last: bool, args: argparse.Namespace,
) -> tuple[Callable[[], object], dict[str, object]]:
    """Build and warm up one model.

    Returns:
        The step to time, the setting columns of its row, and its peak memory in MB (empty on a CPU).
    """
    on_gpu = args.device.type == "cuda"
    memory_before = torch.cuda.memory_allocated() if on_gpu else 0
    model, shape = build()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    params = sum(p.numel() for p in model.parameters())
    model = model.to(memory_format=memory_format)
    x = torch.randn(batch_size, *shape, device=args.device).to(memory_format=memory_format)
    options = MODES[mode]
    if options is not None:
        model = torch.compile(model, **options)
    step = make_step(model, x, train, getattr(torch, args.amp_dtype) if args.amp_dtype else None)
    if mode == "cudagraph":
        step = begin_graph_before(step)
    for _ in range(args.num_warm_iter):
        step()
    columns = {
        "bench": "train" if train else "inference", "params_m": f"{params / 1e6:.2f}", "batch_size": batch_size,
        "img_size": "x".join(map(str, shape[1:])), "amp_dtype": args.amp_dtype or "",
        "channels_last": int(channels_last), "mode": mode, "baseline": args.baseline,
        "peak_memory_mb": f"{(torch.cuda.max_memory_allocated() - memory_before) / 2**20:.0f}" if on_gpu else "",
    }
    return step, columns


def begin_graph_before(step: Callable[[], object]) -> Callable[[], object]:
    """``step`` that first says that the outputs of other CUDA graphs are no longer needed."""

    def marked() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return marked


def measure(
        builders: Mapping[str, Builder], batch_size: int, train: bool, mode: str, args: argparse.Namespace,
) -> list[dict[str, object]]:
    """Measure candidates side by side in one setting; one that does not fit into the memory has no row.

    Args:
        builders: What makes each candidate's model on the device, and its input shape, by the candidate's name.
        batch_size: Images per step.
        train: Time training steps.
        mode: One of ``MODES``.
        args: Where and how long to measure, and the baseline among the candidates.
    """
    torch._dynamo.reset()
    gc.collect()
    if args.device.type == "cuda":
        torch.cuda.empty_cache()
    # models of one class are compilations of the same code: beyond its limit, torch would run the rest uncompiled
    unlimited = torch._dynamo.config.patch(
        recompile_limit=1000, accumulated_recompile_limit=1000, fail_on_recompile_limit_hit=True)
    steps, columns = {}, {}
    for name, build in builders.items():
        print(f"preparing {name}: {'train' if train else 'inference'}, {mode}, batch {batch_size}", file=sys.stderr)
        try:
            with unlimited:
                steps[name], columns[name] = prepare(
                    build, batch_size, train, mode, name in args.channels_last, args)
        except torch.OutOfMemoryError:
            print(f"{name} does not fit into the memory at batch {batch_size}: left out", file=sys.stderr)
    if not steps:
        return []
    print(f"timing {len(steps)} candidate(s)", file=sys.stderr)
    timings = _bench.time_interleaved(
        steps, args.device, num_iter=args.num_iter, min_time=args.min_time, baseline=args.baseline)
    return [
        columns[name] | {"model": name} | timing.columns()
        | {"img_per_s": f"{batch_size / timing.median * 1e3:.2f}"}
        for name, timing in timings.items()
    ]


def settings(args: argparse.Namespace) -> Iterator[tuple[bool, str, int | None, int]]:
    """All settings to measure: training or not, mode, image size, batch size.

    Raises:
        UserError: a mode cannot run on the device, or there is no first size for --same-pixels.
    """
    if "cudagraph" in args.mode and args.device.type != "cuda":
        raise UserError("--mode cudagraph needs a CUDA device; use compiled")
    if args.same_pixels and args.img_size == [None]:
        raise UserError("--same-pixels needs --img-size")
    for train in (bench == "train" for bench in args.bench):
        for mode, img_size, batch_size in itertools.product(args.mode, args.img_size, args.batch_size):
            scale = (args.img_size[0] / img_size) ** 2 if args.same_pixels else 1
            yield train, mode, img_size, max(1, round(batch_size * scale))


@tool
def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--loader"]:
        return benchmark_loader.main(argv[1:])
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    for name in args.models:
        build_classifier(name, device="meta")  # a wrong name is known before the first is measured
    planned = list(settings(args))
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    for train, mode, img_size, batch_size in planned:
        builders = {name: partial(build_model, name, img_size, args.device) for name in args.models}
        report.add(measure(builders, batch_size, train, mode, args))
    report.print(TABLE_COLUMNS, args.baseline)
    return 0 if len(report.rows) == len(planned) * len(args.models) else 1


if __name__ == "__main__":
    sys.exit(main())
