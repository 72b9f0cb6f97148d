#!/usr/bin/env python3
r"""How many images a second the training loader gives, without any model: a GPU that takes more than that starves.

    python tools/benchmark_loader.py --num-workers 0 1 2 -- --dataset mnist5k
    python tools/benchmark_loader.py --num-workers 1 2 4 8 --results-file loader.csv -- \
        -c configs/classification/vmamba_tiny_s1l8_in1k.yaml --data-dir DIR

What follows `--` are options of tools/train.py: data, augmentation, input. Whole batches are read, in the order and
with the augmentation that training would have, with one number of loader processes after the other.
docs/training.md says what to do about a slow one.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _bench
import torch

from vmamba.data import create_dataset, create_train_loader
from vmamba.data.loaders import create_mixup
from vmamba.errors import tool
from vmamba.train.arguments import parse_train_arguments
from vmamba.train.model import build_classifier, data_config_for

COLUMNS = ("dataset", "img_size", "batch_size", "workers", "batches", "images_per_second")
RECIPES = Path(__file__).parent.parent / "configs" / "classification"


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and those of tools/train.py."""
    own, train = (list(argv), []) if "--" not in argv else (
        list(argv[:argv.index("--")]), list(argv[argv.index("--") + 1:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--num-workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="loader processes; 0 reads in the "
        "main process (default 0 1 2)")
    add("--num-batches", type=_bench.positive, default=20, metavar="N", help="batches to time (default 20)")
    add("--results-file", type=Path, metavar="CSV", help="append the results to this file")
    return parser.parse_args(own), train


def endless(loader: Any) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        loader.loader.set_position(epoch, 0)
        yield from loader


def images_per_second(loader: Any, batches: int, batch_size: int) -> float:
    """Reads `batches` batches after a first one, which starts the processes."""
    stream = endless(loader)
    next(stream)
    begin = time.perf_counter()
    for _ in itertools.islice(stream, batches):
        pass
    return batches * batch_size / (time.perf_counter() - begin)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args, train = parse_args(sys.argv[1:] if argv is None else argv)
    options = parse_train_arguments(train, RECIPES)
    options.rank, options.world_size, options.distributed, options.device = 0, 1, False, "cpu"
    device = torch.device("cpu")
    report = _bench.Report(COLUMNS, device, args.results_file)
    model = build_classifier(options.model)
    config = data_config_for(model, options)
    mode = options.input_img_mode or ("L" if config["input_size"][0] == 1 else "RGB")
    for workers in args.num_workers:
        options.workers = workers
        dataset = create_dataset(options.dataset, options.data_dir, options.train_split, is_training=True,
                                 input_img_mode=mode)
        loader = create_train_loader(dataset, options, config, device, create_mixup(options, model.num_classes))
        speed = images_per_second(loader, args.num_batches, options.batch_size)
        report.add([{
            "dataset": options.dataset or Path(options.data_dir).name, "img_size": config["input_size"][-1],
            "batch_size": options.batch_size, "workers": workers, "batches": args.num_batches,
            "images_per_second": f"{speed:.0f}"}])
    print(_bench.markdown_table(COLUMNS, report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
