"""tools/make_digit_scenes.py: the files the toolboxes read, bit-equal each time, checked with COCO's own code."""
import contextlib
import hashlib
import io

import make_digit_scenes
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from vmamba.data.digit_scenes import CLASSES, DigitScenes

FLAGS = ["--train", "6", "--validation", "3", "--size", "128"]


def digests(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "data"
    assert make_digit_scenes.main([*FLAGS, "--output", str(root)]) == 0
    return root


def test_second_set_is_bit_equal(root, tmp_path):
    assert make_digit_scenes.main([*FLAGS, "--output", str(tmp_path / "again")]) == 0
    assert digests(tmp_path / "again") == digests(root)
    assert len(digests(root)) == 2 * (6 + 3) + 3


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("validation", 3)])
def test_coco_reads_what_the_scenes_hold(root, split, count):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(root / "annotations" / f"{split}.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    scenes = DigitScenes(split, count, size=128)
    ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for image_id, scene in zip(coco.getImgIds(), scenes, strict=True):
        info = coco.loadImgs(image_id)[0]
        assert np.array_equal(np.asarray(Image.open(root / "images" / split / info["file_name"])), scene.image)
        labels = np.asarray(Image.open(root / "labels" / split / info["file_name"]))
        assert (labels.dtype, labels.shape) == (np.uint8, (128, 128))
        assert np.array_equal(labels, scene.label_map)
        found = coco.loadAnns(coco.getAnnIds(image_id))
        for annotation, digit in zip(found, scene.digits, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, digit.mask)
            assert annotation["area"] == mask.sum()
            assert tuple(annotation["bbox"]) == digit.box
            assert annotation["category_id"] == 1 + digit.label


def test_existing_folder_is_left_alone(root, capsys):
    before = digests(root)
    assert make_digit_scenes.main(["--output", str(root)]) == 2
    assert capsys.readouterr().err == f"error: {root} exists: delete it, or give another --output\n"
    assert digests(root) == before


def test_bad_size_writes_nothing(tmp_path, capsys):
    assert make_digit_scenes.main(["--output", str(tmp_path / "x"), "--size", "1000"]) == 2
    assert capsys.readouterr().err.startswith("error: the size of digit scenes must lie between 64 and 300")
    assert not (tmp_path / "x").exists()
