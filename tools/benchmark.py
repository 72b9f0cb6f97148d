#!/usr/bin/env python3
r"""Compare the speed of timm models, ours or any other, in one interleaved run.

Every round runs each model once, so a machine that is busy with something else slows all of them alike; the ratio to
the baseline is taken within the rounds. Inputs are random and already on the device: data loading is not measured.

Examples:
    python tools/benchmark.py swin_tiny_patch4_window7_224 vmamba_tiny_s1l8 --device cpu --batch-size 1 8
    python tools/benchmark.py vmamba_tiny convnext_tiny --bench both --batch-size 64 --amp-dtype bfloat16 \
        --results-file results.csv

An inference step is a forward pass; a training step is forward, cross-entropy, backward and an AdamW update. Peak
memory (GPU only) counts the model, gradients, optimizer state and activations.
"""

import argparse
import sys
from collections.abc import Callable

import _bench
import torch

from vmamba.errors import UserError, tool
from vmamba.train.model import build_classifier

SETTING_COLUMNS = (
    "bench", "model", "params_m", "batch_size", "img_size", "amp_dtype", "channels_last", "compile", "baseline")
RESULT_COLUMNS = ("img_per_s", "median_ms", "p20_ms", "p80_ms", "time_ratio", "peak_memory_mb", "num_iter")
CSV_COLUMNS = (*SETTING_COLUMNS, *RESULT_COLUMNS)
TABLE_COLUMNS = ("model", "bench", "batch_size", "img_size", "params_m", *RESULT_COLUMNS)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="timm model names")
    add("--baseline", metavar="MODEL", help="model the ratios refer to (default: the first)")
    add("--bench", choices=("inference", "train", "both"), default="inference")
    add("--batch-size", type=int, nargs="+", default=[1], metavar="N")
    add("--img-size", type=int, nargs="+", default=[None], metavar="N", help="square inputs (default: the model's own)")
    add("--amp-dtype", choices=("float16", "bfloat16"), help="run under autocast (default: float32)")
    add("--channels-last", action="store_true", help="channels_last memory format for models and inputs")
    add("--compile", action="store_true", help="torch.compile each model")
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    if min(args.batch_size) < 1 or min(size or 1 for size in args.img_size) < 1:
        parser.error("--batch-size and --img-size must be at least 1")
    args.baseline = args.baseline or args.models[0]
    if args.baseline not in args.models:
        parser.error(f"--baseline {args.baseline} is not one of the models")
    args.models = list(dict.fromkeys(args.models))
    return args


def build_model(name: str, img_size: int | None) -> tuple[torch.nn.Module, tuple[int, int, int]]:
    """Create an untrained model and the input shape (channels, height, width) it is to be timed at.

    Raises:
        UserError: timm does not know the model, or it does not take images of this size.
    """
    model = build_classifier(name)
    channels, *native = model.pretrained_cfg["input_size"]
    size = (img_size, img_size) if img_size else tuple(native)
    try:
        if list(size) != native and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, channels, *size))
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
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
        name: str, batch_size: int, img_size: int | None, train: bool, args: argparse.Namespace,
) -> tuple[Callable[[], object], dict[str, object]]:
    """Build and warm up one model.

    Returns:
        The step to time, the setting columns of its row, and its peak memory in MB (empty on a CPU).
    """
    on_gpu = args.device.type == "cuda"
    memory_before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model, shape = build_model(name, img_size)
    params = sum(p.numel() for p in model.parameters())
    model = model.to(args.device, memory_format=memory_format)
    x = torch.randn(batch_size, *shape, device=args.device).to(memory_format=memory_format)
    if args.compile:
        model = torch.compile(model)
    step = make_step(model, x, train, getattr(torch, args.amp_dtype) if args.amp_dtype else None)
    for _ in range(args.num_warm_iter):
        step()
    columns = {
        "bench": "train" if train else "inference", "model": name, "params_m": f"{params / 1e6:.2f}",
        "batch_size": batch_size, "img_size": "x".join(map(str, shape[1:])), "amp_dtype": args.amp_dtype or "",
        "channels_last": int(args.channels_last), "compile": int(args.compile), "baseline": args.baseline,
        "peak_memory_mb": f"{(torch.cuda.max_memory_allocated() - memory_before) / 2**20:.0f}" if on_gpu else "",
    }
    return step, columns


def run_setting(
        batch_size: int, img_size: int | None, train: bool, args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure all models at one batch size, image size and kind of step; a model that does not fit has no row."""
    torch._dynamo.reset()
    steps, settings = {}, {}
    for name in args.models:
        print(f"preparing {name}: {'train' if train else 'inference'}, batch {batch_size}", file=sys.stderr)
        try:
            steps[name], settings[name] = prepare(name, batch_size, img_size, train, args)
        except torch.OutOfMemoryError:
            print(f"{name} does not fit into the memory at batch {batch_size}: left out", file=sys.stderr)
    if not steps:
        return []
    print(f"timing {len(steps)} model(s)", file=sys.stderr)
    timings = _bench.time_interleaved(
        steps, args.device, num_iter=args.num_iter, min_time=args.min_time, baseline=args.baseline)
    return [
        settings[name] | timing.columns() | {"img_per_s": f"{batch_size / timing.median * 1e3:.2f}"}
        for name, timing in timings.items()
    ]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    for name in args.models:
        build_classifier(name, device="meta")  # a wrong name is known before the first is measured
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    expected = 0
    for train in {"inference": (False,), "train": (True,), "both": (False, True)}[args.bench]:
        for img_size in args.img_size:
            for batch_size in args.batch_size:
                expected += len(args.models)
                report.add(run_setting(batch_size, img_size, train, args))
    report.print(TABLE_COLUMNS, args.baseline)
    return 0 if len(report.rows) == expected else 1


if __name__ == "__main__":
    sys.exit(main())
