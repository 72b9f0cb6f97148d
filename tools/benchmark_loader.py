#!/usr/bin/env python3
r"""How many images a second the training loader gives, without any model: a GPU that takes more than that starves.

    python tools/benchmark.py --loader --num-workers 0 1 2 --photographs 256 -- --model resnet50 --aa rand-m9-mstd0.5
    python tools/benchmark.py --loader --num-workers 0 1 2 -- --dataset mnist5k
    python tools/benchmark.py --loader --num-workers 1 2 4 8 --results-file loader.csv -- \
        -c configs/classification/vmamba_tiny_s1l8_in1k.yaml --data-dir DIR

What follows `--` are options of tools/train.py: data, augmentation, input. Whole batches are read, in the order and
with the augmentation that training would have, with one number of loader processes after the other.
docs/training.md says what to do about a slow one.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _bench
import torch
from PIL import Image

from vmamba.data import create_dataset, create_train_loader
from vmamba.data.loaders import create_mixup
from vmamba.errors import require, tool
from vmamba.train.arguments import parse_train_arguments
from vmamba.train.model import build_classifier, data_config_for

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")      # in scikit-image's wheel
COLUMNS = ("dataset", "aug", "data_cache", "img_size", "batch_size", "workers", "batches", "images_per_second",
           "images_per_cpu_second")
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
    add("--photographs", type=_bench.positive, metavar="N", help="read N JPEG files of 500x375 pixels, the usual size "
        "of ImageNet, that are cut out of scikit-image's photographs for this")
    add("--results-file", type=Path, metavar="CSV", help="append the results to this file")
    return parser.parse_args(own), train


def write_photographs(folder: Path, count: int) -> None:
    """Makes the training split of an image folder: `count` cuts of photographs, a class each, in different places."""
    photographs = require("skimage.data")
    generator = random.Random(0)
    for number in range(count):
        name = PHOTOGRAPHS[number % len(PHOTOGRAPHS)]
        image = Image.fromarray(getattr(photographs, name)())
        scale = max(500 / image.width, 375 / image.height) * generator.uniform(1, 1.2)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = generator.randint(0, image.width - 500), generator.randint(0, image.height - 375)
        path = folder / "train" / name / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + 500, top + 375)).save(path, quality=90)


def endless(loader: Any) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        loader.loader.set_position(epoch, 0)
        yield from loader


def speeds(loader: Any, batches: int, batch_size: int) -> tuple[float, float]:
    """Images a second, and images a second of this process's CPU time, after a first batch, which starts the processes.

    The second is what one core gives, even beside other programs, where this process does the reading.
    """
    stream = endless(loader)
    next(stream)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in itertools.islice(stream, batches):
        pass
    images = batches * batch_size
    return images / (time.perf_counter() - begin), images / (time.process_time() - begin_cpu)


@tool
def main(argv: Sequence[str] | None = None) -> int:
    args, train = parse_args(sys.argv[1:] if argv is None else argv)
    if not args.photographs:
        return measure(args, parse_train_arguments(train, RECIPES))
    with tempfile.TemporaryDirectory() as folder:
        options = parse_train_arguments([*train, "--data-dir", str(Path(folder) / "photographs")], RECIPES)
        write_photographs(Path(options.data_dir), args.photographs)
        return measure(args, options)


def measure(args: argparse.Namespace, options: argparse.Namespace) -> int:
    """Times one number of loader processes after the other."""
    options.rank, options.world_size, options.distributed, options.device = 0, 1, False, "cpu"
    device = torch.device("cpu")
    torch.set_num_threads(1)
    report = _bench.Report(COLUMNS, device, args.results_file)
    model = build_classifier(options.model)
    config = data_config_for(model, options)
    mode = options.input_img_mode or ("L" if config["input_size"][0] == 1 else "RGB")
    for workers in args.num_workers:
        options.workers = workers
        dataset = create_dataset(options.dataset, options.data_dir, options.train_split, is_training=True,
                                 input_img_mode=mode, cache=options.data_cache)
        if options.data_cache:      # filled before the clock starts
            for index in range(len(dataset)):
                dataset[index]
        loader = create_train_loader(dataset, options, config, device, create_mixup(options, model.num_classes))
        speed, per_core = speeds(loader, args.num_batches, options.batch_size)
        report.add([{
            "dataset": options.dataset or Path(options.data_dir).name, "aug": options.aa or options.aug,
            "data_cache": int(bool(options.data_cache)), "img_size": config["input_size"][-1],
            "batch_size": options.batch_size, "workers": workers, "batches": args.num_batches,
            "images_per_second": f"{speed:.0f}", "images_per_cpu_second": "" if workers else f"{per_core:.0f}"}])
    print(_bench.markdown_table(COLUMNS, report.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
