"""Small synthetic datasets in the toolboxes' formats, and configs brought to their size.

Without the toolboxes (``make openmmlab``) nothing here is collected; ``make test-openmmlab`` fails then, as pytest does
when it finds no test.
"""
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

INSTALLED = all(importlib.util.find_spec(name) for name in ("mmengine", "mmcv", "mmdet", "mmseg"))
collect_ignore_glob = [] if INSTALLED else ["test_*.py"]

HEIGHT, WIDTH, IMAGES = 96, 128, 2


def _picture(rng):
    return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """Two noise images with two rectangles each, as COCO 2017 lays its files out."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    boxes = [[8, 10, 50, 40], [60, 30, 50, 50]]
    annotations = [
        {"id": 2 * image + i, "image_id": image, "category_id": 1 + i, "iscrowd": 0, "bbox": [x, y, w, h],
         "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for image in range(IMAGES) for i, (x, y, w, h) in enumerate(boxes)]
    (root / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        for image in range(IMAGES):
            _picture(rng).save(root / split / f"{image}.png")
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps({
            "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(IMAGES)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]}))
    return root


@pytest.fixture(scope="session")
def ade_root(tmp_path_factory):
    """Two noise images with noise labels, as ADE20K lays its files out."""
    root = tmp_path_factory.mktemp("ade")
    rng = np.random.default_rng(0)
    for split in ("training", "validation"):
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        for image in range(IMAGES):
            _picture(rng).save(root / "images" / split / f"{image}.jpg")
            labels = np.kron(rng.integers(0, 151, (4, 4), dtype=np.uint8), np.ones((HEIGHT // 4, WIDTH // 4), np.uint8))
            Image.fromarray(labels).save(root / "annotations" / split / f"{image}.png")
    return root
