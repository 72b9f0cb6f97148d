#!/usr/bin/env python3
r"""Detects or segments what is on image files: overlays and a JSON file, from a config of mmdet or mmseg.

    python tools/predict_openmmlab.py CONFIG CHECKPOINT images/ photo.jpg --output predictions

predictions/overlays/*.png      the images with boxes, masks and classes drawn on them
predictions/labels/*.png        segmentation: class of each pixel (mode L, or I;16 for more than 256 classes)
predictions/predictions.json    for each image its "filename", "overlay", and
    detection:     "objects", each with "class", "index", "score", "box" [x1, y1, x2, y2] in pixels and, where the
                   model gives one, "mask", run-length encoded as in COCO
    segmentation:  "labels", the file with the class of each pixel, and "pixels", the number of pixels of each class
    an "error" instead, where the file cannot be read
"""
import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _openmmlab import config_errors, existing_checkpoint, load_config
from PIL import Image

from vmamba.data.datasets import UNREADABLE
from vmamba.errors import UserError, require, tool
from vmamba.train.predict import find_images
from vmamba.train.validate import resolve_device

COLOURS = "random"      # of a dataset that names none


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", metavar="CONFIG", help="config of mmdet or mmseg")
    add("checkpoint", metavar="CHECKPOINT", help="weights of that model")
    add("inputs", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files and folders")
    add("--output", type=Path, default=Path("predictions"), metavar="DIR", help="folder to make (default predictions)")
    add("--score-thr", type=float, default=0.3, metavar="P", help="least score of an object, 0 to 1 (default 0.3)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device to run on")
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise UserError(f"--score-thr must lie between 0 and 1, not {args.score_thr}")
    return args


class Predictor:
    """A model of a toolbox, and how its results are written.

    Args:
        config: config of mmdet or mmseg.
        checkpoint: file of weights.
        device: where to run.
        output: folder for overlays and label maps.
        score_thr: least score of an object.
    """

    def __init__(self, config: Any, checkpoint: str, device: torch.device, output: Path, score_thr: float):
        self.scope = config.default_scope
        self.apis = require(f"{self.scope}.apis", "openmmlab")
        create = self.apis.init_detector if self.scope == "mmdet" else self.apis.init_model
        self.model = create(config, checkpoint, device=str(device))
        self.classes = list(self.model.dataset_meta["classes"])
        registry = require(f"{self.scope}.registry", "openmmlab")
        self.visualizer = registry.VISUALIZERS.build({**config.visualizer, "vis_backends": [], "name": "predict"})
        self.visualizer.dataset_meta = {"palette": COLOURS, **self.model.dataset_meta}
        self.output, self.score_thr = output, score_thr

    def __call__(self, path: Path, name: str) -> dict[str, Any]:
        """Predicts one image, writes its overlay, and returns its entry in the JSON file.

        Args:
            path: the image.
            name: path of its overlay inside the output folder, without a suffix.
        """
        with Image.open(path) as file:
            image = np.asarray(file.convert("RGB"))
        run = self.apis.inference_detector if self.scope == "mmdet" else self.apis.inference_model
        sample = run(self.model, np.ascontiguousarray(image[..., ::-1])).cpu()      # BGR
        overlay = self.output / "overlays" / f"{name}.png"
        threshold = {"pred_score_thr": self.score_thr} if self.scope == "mmdet" else {}
        self.visualizer.add_datasample(name, image, sample, draw_gt=False, out_file=str(overlay), **threshold)
        entry = {"filename": str(path), "overlay": str(overlay.relative_to(self.output))}
        return {**entry, **(self._objects(sample) if self.scope == "mmdet" else self._labels(sample, name))}

    def _objects(self, sample: Any) -> dict[str, Any]:
        """The objects of a detection sample, best first."""
        found = sample.pred_instances
        found = found[found.scores >= self.score_thr]
        found = found[found.scores.argsort(descending=True)]
        objects = [
            {"class": self.classes[label], "index": label, "score": round(score, 6), "box": [round(v, 2) for v in box]}
            for label, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)]
        if "masks" in found:
            encode = require("pycocotools.mask", "openmmlab").encode
            for entry, mask in zip(objects, found.masks.numpy(), strict=True):
                rle = encode(np.asfortranarray(mask, dtype=np.uint8))
                entry["mask"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        return {"objects": objects}

    def _labels(self, sample: Any, name: str) -> dict[str, Any]:
        """Writes the label map of a segmentation sample, and counts its pixels."""
        labels = sample.pred_sem_seg.data[0].numpy()
        path = self.output / "labels" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)).save(path)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes)).tolist()
        return {"labels": str(path.relative_to(self.output)),
                "pixels": {name: count for name, count in zip(self.classes, counts, strict=True) if count}}


def output_names(paths: list[Path], inputs: list[str]) -> list[str]:
    """A name for each image: its path inside the folder that was named, without the suffix.

    Raises:
        UserError: two images would have the same name.
    """
    folders = [Path(name) for name in inputs if Path(name).is_dir()]
    names: dict[str, Path] = {}
    for path in paths:
        inside = next((folder for folder in folders if path.is_relative_to(folder)), path.parent)
        name = str(path.relative_to(inside).with_suffix(""))
        if name in names:
            raise UserError(f"{names[name]} and {path} would both be written as {name}.png: predict them one by one")
        names[name] = path
    return list(names)


@tool
def main(argv: list[str] | None = None) -> int:
    """Returns 0; 1 if some image could not be read (the others are predicted); 2 for bad input."""
    args = parse_args(argv)
    config = load_config(args.config)
    checkpoint = existing_checkpoint(args.checkpoint)
    paths = find_images(args.inputs)
    names = output_names(paths, args.inputs)
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output} exists: delete it, or give another --output")
    with config_errors(f"checkpoint {checkpoint} does not fit {args.config}"):
        predictor = Predictor(config, checkpoint, resolve_device(args.device), args.output, args.score_thr)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {args.output}: {error.strerror}") from error
    entries, unreadable = [], 0
    for path, name in zip(paths, names, strict=True):
        try:
            entries.append(predictor(path, name))
        except UNREADABLE as error:
            unreadable += 1
            entries.append({"filename": str(path), "error": " ".join(str(error).split())})
            print(f"error: cannot read image {path}: {entries[-1]['error']}", file=sys.stderr)
    (args.output / "predictions.json").write_text(json.dumps(entries, indent=1))
    print(f"{len(paths) - unreadable} of {len(paths)} images predicted into {args.output}")
    return int(unreadable > 0)


if __name__ == "__main__":
    sys.exit(main())
