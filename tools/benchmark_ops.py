#!/usr/bin/env python3
r"""Compare the backends of a scan operator in one interleaved run.

No speed is reported for a wrong result: before it is timed, every backend's output, and with --bench train every
gradient, is compared with the step-by-step reference on the same inputs.

Examples:
    python tools/benchmark_ops.py selective_scan --device cpu
    python tools/benchmark_ops.py ss2d_scan --size 56 56 --dim 192 --state 1 --rank 6 --bench both \
        --dtype bfloat16 --backend torch triton
"""

import argparse
import sys
from collections.abc import Callable

import _bench
import torch

from vmamba.errors import UserError, tool
from vmamba.ops import selective_scan, ss2d_scan
from vmamba.scans import scan_order

SETTING_COLUMNS = ("bench", "op", "backend", "batch_size", "dim", "size", "state", "dtype", "baseline")
RESULT_COLUMNS = ("median_ms", "p20_ms", "p80_ms", "time_ratio", "num_iter")
# relative root-mean-square difference to the reference: rounding of sums in another order for the wide types, rounding
# of the inputs' own type, which the reference shares only in part, for the narrow ones
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("op", choices=("selective_scan", "ss2d_scan"))
    add("--backend", nargs="+", default=["reference", "auto"], metavar="B",
        help="backends; ratios refer to the first (default: reference auto)")
    add("--bench", choices=("inference", "train", "both"), default="inference", help="forward, or forward and backward")
    add("--batch-size", type=int, default=4, metavar="N")
    add("--dim", type=int, default=384, metavar="D", help="channels (default 384)")
    add("--size", type=int, nargs=2, default=[14, 14], metavar=("H", "W"), help="grid of L = H W tokens (14 14)")
    add("--state", type=int, default=16, metavar="N", help="state size (default 16)")
    add("--rank", type=int, default=12, metavar="R", help="rank of the step sizes, ss2d_scan only (default 12)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the activations")
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    if min(args.batch_size, args.dim, *args.size, args.state, args.rank) < 1:
        parser.error("sizes must be at least 1")
    args.backend = list(dict.fromkeys(args.backend))
    return args


def make_inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Random inputs of the operator, scaled as in a freshly initialised model; parameters stay float32."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    batch, dim, states, rank = args.batch_size, args.dim, args.state, args.rank
    length, directions = args.size[0] * args.size[1], 4
    rates = torch.arange(1.0, states + 1).expand(dim, states)
    if args.op == "selective_scan":
        activations = {"u": normal(batch, dim, length), "delta": normal(batch, dim, length, scale=0.5),
                       "B": normal(batch, 1, states, length), "C": normal(batch, 1, states, length)}
        parameters = {"A": -rates, "D": torch.ones(dim), "delta_bias": normal(dim, scale=0.5) - 4.6}
    else:
        activations = {"x": normal(batch, length, dim), "proj": normal(batch, length, directions, rank + 2 * states)}
        parameters = {"dt_weight": normal(directions, dim, rank, scale=rank**-0.5),
                      "dt_bias": normal(directions, dim, scale=0.5) - 4.6,
                      "A_log": rates.log().expand(directions, dim, states), "D_skip": torch.ones(directions, dim)}
    dtype = getattr(torch, args.dtype)
    inputs = {name: value.to(args.device, dtype) for name, value in activations.items()}
    return inputs | {name: value.to(args.device).contiguous() for name, value in parameters.items()}


def make_step(
        args: argparse.Namespace, inputs: dict[str, torch.Tensor], backend: str, train: bool,
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """The function to time: the operator's forward, or its forward and backward.

    Returns:
        A function that returns the output, followed by the gradients of all inputs when training.
    """
    if args.op == "selective_scan":
        def forward(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return selective_scan(**values, delta_softplus=True, backend=backend)
    else:
        order = scan_order("cross", tuple(args.size), 4, args.device)

        def forward(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return ss2d_scan(**values, order=order, backend=backend)

    if not train:
        def infer() -> tuple[torch.Tensor, ...]:
            with torch.inference_mode():
                return (forward(inputs),)

        return infer

    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}

    def step() -> tuple[torch.Tensor, ...]:
        y = forward(leaves)
        # the output times itself: every gradient then depends on every output
        return y.detach(), *torch.autograd.grad(y, list(leaves.values()), y.detach())

    return step


def check(args: argparse.Namespace, inputs: dict[str, torch.Tensor], backend: str, train: bool) -> None:
    """Compare a backend with the reference.

    Raises:
        UserError: the backend cannot run, or an output or gradient is further from the reference's than `TOLERANCE`.
    """
    try:
        found = make_step(args, inputs, backend, train)()
    except ValueError as error:
        raise UserError(str(error)) from error
    expected = make_step(args, inputs, "reference", train)()
    limit = TOLERANCE[getattr(torch, args.dtype)]
    for name, a, b in zip(("output", *inputs), found, expected, strict=False):
        what = name if name == "output" else f"gradient of {name}"
        error = ((a.double() - b.double()).square().mean() / b.double().square().mean()).sqrt().item()
        if not error <= limit:
            raise UserError(f"backend {backend} is wrong, so it is not timed: the {what} differs from the "
                            f"reference's by {error:.1e} (relative RMS), the limit is {limit:.0e}")


def run_setting(args: argparse.Namespace, train: bool) -> list[dict[str, object]]:
    """Check, warm up and measure all backends with or without the backward."""
    inputs = make_inputs(args)
    steps = {}
    for backend in args.backend:
        print(f"checking {backend}: {'train' if train else 'inference'}", file=sys.stderr)
        check(args, inputs, backend, train)
        steps[backend] = make_step(args, inputs, backend, train)
        for _ in range(args.num_warm_iter):
            steps[backend]()
    timings = _bench.time_interleaved(
        steps, args.device, num_iter=args.num_iter, min_time=args.min_time, baseline=args.backend[0])
    return [
        {"bench": "train" if train else "inference", "op": args.op, "backend": backend, "batch_size": args.batch_size,
         "dim": args.dim, "size": "x".join(map(str, args.size)), "state": args.state, "dtype": args.dtype,
         "baseline": args.backend[0]} | timing.columns()
        for backend, timing in timings.items()
    ]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    columns = (*SETTING_COLUMNS, *RESULT_COLUMNS)
    report = _bench.Report(columns, args.device, args.results_file)
    for train in {"inference": (False,), "train": (True,), "both": (False, True)}[args.bench]:
        report.add(run_setting(args, train))
    report.print([c for c in columns if c != "baseline"], args.backend[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
