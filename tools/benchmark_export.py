#!/usr/bin/env python3
r"""Export models in each format, compare the files with PyTorch, and time them side by side.

Examples:
    python tools/benchmark_export.py vmamba_tiny_s1l8 vim_tiny_patch16_224 mlla_tiny --threads 2
    python tools/benchmark_export.py 'test_*' --format .onnx .aoti.pt2 --results-file results.csv

Models are untrained. A file that takes images of any size is compared at three sizes, on random images and on
photographs; its latency is that of one image of the model's own size. Where a format needs a fixed size, or cannot
have a model, the row says why. Runtimes get as many CPU threads as PyTorch.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import _bench
import timm
import torch
from _results import is_ours
from torch import nn

from vmamba.errors import UserError, tool
from vmamba.export import ENDINGS, Exported, load_exported
from vmamba.train.checkpoint import Description
from vmamba.train.export import export_classifier
from vmamba.train.model import build_classifier, class_names

CSV_COLUMNS = (
    "bench", "model", "params_m", "format", "sizes", "batch_size", "img_size", "largest_logit", "difference", "file_mb",
    "export_s", "median_ms", "p20_ms", "p80_ms", "time_ratio", "num_iter", "reason")
TABLE_COLUMNS = ("model", "format", "sizes", "largest_logit", "difference", "median_ms", "time_ratio", "reason")
PYTORCH = "PyTorch"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="timm model names; '*' in one stands for names of this package")
    add("--format", nargs="+", choices=ENDINGS, default=list(ENDINGS), help="ends of file names")
    _bench.add_arguments(parser)
    args = parser.parse_args(argv)
    args.models = list(dict.fromkeys(name for model in args.models for name in names(model)))
    return args


def names(model: str) -> list[str]:
    """Names that a name stands for; several if it has a `*`."""
    if "*" not in model:
        return [model]
    found = [name for name in timm.list_models(model) if is_ours(name)]
    if not found:
        raise UserError(f"no model of this package is called {model}")
    return found


def describe(model: nn.Module, name: str) -> Description:
    """What tools/export.py would say of published weights."""
    config = timm.data.resolve_model_data_config(model)
    description = Description(name, model.num_classes, config["input_size"][0], data_config=config)
    description.label_names = class_names(model, description)
    return description


def export(
        model: nn.Module, name: str, form: str, folder: Path, threads: int,
) -> tuple[Exported | None, dict[str, object]]:
    """Export a model for any size of images, or else for its own, and read the file.

    Returns:
        The file ready to run, None if there is none, and the columns of its row.
    """
    description, path = describe(model, name), folder / f"{name}{form}"
    reasons = []
    for sizes, fixed in (("any", False), ("fixed", True)):
        begin = time.perf_counter()
        try:
            found = export_classifier(model, description, path, form, fixed)
        except UserError as error:
            reasons.append(str(error))
            continue
        row = {
            "sizes": sizes, "reason": reasons[0] if reasons else "",
            "export_s": f"{time.perf_counter() - begin:.1f}", "file_mb": f"{path.stat().st_size / 2**20:.1f}",
            "difference": f"{max(item.absolute for item in found):.1e}",
            "largest_logit": f"{max(item.logit for item in found):.3g}"}
        return load_exported(path, next(model.parameters()).device, threads=threads), row
    return None, {"sizes": "none", "reason": reasons[-1]}


def measure(name: str, formats: list[str], args: argparse.Namespace) -> list[Mapping[str, object]]:
    """Rows of one model: PyTorch and each format."""
    torch.manual_seed(0)
    model = build_classifier(name).eval().to(args.device)
    size = model.pretrained_cfg["input_size"]
    images = torch.randn(1, *size, device=args.device)
    setting = {
        "bench": "inference", "model": name, "batch_size": 1, "img_size": "x".join(map(str, size[1:])),
        "params_m": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"}
    rows: dict[str, dict[str, object]] = {PYTORCH: {"sizes": "any"}}
    steps: dict[str, Callable[[], object]] = {PYTORCH: torch.inference_mode()(lambda: model(images))}
    with tempfile.TemporaryDirectory() as folder:
        for form in formats:
            print(f"exporting {name} to {form}", file=sys.stderr, flush=True)
            exported, rows[form] = export(model, name, form, Path(folder), torch.get_num_threads())
            if exported is not None:
                steps[form] = lambda exported=exported: exported(images)
        for step in steps.values():
            for _ in range(args.num_warm_iter):
                step()
        timings = _bench.time_interleaved(
            steps, args.device, num_iter=args.num_iter, min_time=args.min_time, baseline=PYTORCH)
    empty = dict.fromkeys(CSV_COLUMNS, "")
    return [
        empty | setting | {"format": form} | row | (timings[form].columns() if form in timings else {})
        for form, row in rows.items()]


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    args.device = _bench.select_device(args.device, args.threads)
    for name in args.models:
        build_classifier(name, device="meta")  # a wrong name is known before the first is measured
    report = _bench.Report(CSV_COLUMNS, args.device, args.results_file)
    for name in args.models:
        report.add(measure(name, args.format, args))
    report.print(TABLE_COLUMNS, PYTORCH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
