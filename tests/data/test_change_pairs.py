"""Folders of pairs as the data sets have them, their transforms, and pairs of digit scenes."""
import random

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data.change_augmentation import ChangeTransform, normalise
from vmamba.data.change_pairs import LAYOUTS, SECOND_COLOURS, ChangePairs
from vmamba.data.change_scenes import ChangeScenes
from vmamba.errors import UserError

FOLDERS = {
    "levir": ("A/{}.png", "B/{}.png", "label/{}.png"),
    "whu": ("A/{}.png", "B/{}.png", "label/{}.png"),
    "sysu": ("time1/{}.png", "time2/{}.png", "label/{}.png"),
    "second": ("im1/{}.png", "im2/{}.png", "label1/{}.png", "label2/{}.png"),
    "xbd": ("images/{}_pre_disaster.png", "images/{}_post_disaster.png", "targets/{}_pre_disaster_target.png",
            "targets/{}_post_disaster_target.png"),
}


def write(root, layout, split="train", names=("one", "two"), size=(20, 30)):
    """Writes a data set of that layout; masks have all classes in their first row."""
    rng = np.random.default_rng(0)
    for name in names:
        for i, pattern in enumerate(FOLDERS[layout]):
            path = root / split / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if i < 2:
                array = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            elif layout == "second":
                array = np.full((*size, 3), 255, dtype=np.uint8)
                array[0, :7] = SECOND_COLOURS
            else:
                array = np.zeros(size, dtype=np.uint8)
                greatest = 4 if i == 3 else 1
                array[0, :greatest + 1] = range(greatest + 1)
                array = array * (1 if layout == "xbd" else 255)
            Image.fromarray(array).save(path)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout, tmp_path):
    dataset = ChangePairs(write(tmp_path, layout), "train", layout, ChangeTransform(None, augment=False))
    assert [pair.name for pair in dataset.pairs] == ["one", "two"]
    first, second, labels = dataset[1]
    assert first.shape == second.shape == (3, 20, 30)
    assert not torch.equal(first, second)
    names = {"bcd": ("change",), "scd": ("change", "first", "second"), "bda": ("building", "damage")}[dataset.task]
    assert {k: (v.dtype, v.shape) for k, v in labels.items()} == dict.fromkeys(names, (torch.int64, (20, 30)))
    for name, greatest in dataset.layout.classes.items():
        assert labels[name].unique().tolist() == list(range(greatest + 1))
        assert labels[name][0, :greatest + 1].tolist() == list(range(greatest + 1))
    if dataset.task == "scd":
        assert torch.equal(labels["change"], (labels["first"] > 0).long())


def test_land_cover_as_class_numbers(tmp_path):
    write(tmp_path, "second", names=("one",))
    array = np.zeros((20, 30), dtype=np.uint8)
    array[3, 4:6] = 6, 255
    for folder in ("label1", "label2"):
        Image.fromarray(array).save(tmp_path / "train" / folder / "one.png")
    *_, masks = ChangePairs(tmp_path, "train", "second", None).read(0)
    assert masks["first"][3, 4] == 6
    assert masks["change"][3, 3:6].tolist() == [0, 1, 255]
    assert masks["change"].sum() == 256


def test_splits_as_lists_of_files(tmp_path):
    """Tiles of all splits in one place, as LEVIR-CD and WHU-CD are often passed on."""
    write(tmp_path, "whu", split=".", names=("a.1", "b", "c"))
    (tmp_path / "list").mkdir()
    for split, names in {"train": "b.png\na.1\n\n", "val": "c.png", "test": "", "bad": "d.png"}.items():
        (tmp_path / "list" / f"{split}.txt").write_text(names)
    transform = ChangeTransform(None, augment=False)
    dataset = ChangePairs(tmp_path, "train", "whu", transform)
    assert [pair.name for pair in dataset.pairs] == ["b", "a.1"]
    assert dataset.read(0)[2]["change"][0, :2].tolist() == [0, 1]
    assert [pair.name for pair in ChangePairs(tmp_path, "val", "levir", transform).pairs] == ["c"]
    with pytest.raises(UserError, match=r"no images in .*list/test\.txt"):
        ChangePairs(tmp_path, "test", "whu", transform)
    with pytest.raises(UserError, match=r"list/bad\.txt lists d\.png, which is not there"):
        ChangePairs(tmp_path, "bad", "whu", transform)
    (tmp_path / "B" / "c.png").unlink()
    with pytest.raises(UserError, match=r"A/c\.png has no counterpart in .*/B"):
        ChangePairs(tmp_path, "val", "whu", transform)


def overwrite(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda root: overwrite(root / "train/B/two.png", np.zeros((20, 31, 3))),
     r"train/B/two\.png is 20 x 31 pixels, but .*train/A/two\.png is 20 x 30"),
    (lambda root: overwrite(root / "train/label/two.png", np.zeros((19, 30))),
     r"label/two\.png is 19 x 30 pixels, but .*A/two\.png is 20 x 30"),
    (lambda root: overwrite(root / "train/label/two.png", np.full((20, 30), 7)),
     r"mask .*label/two\.png has the unknown class 7, but there are 0 to 1"),
    (lambda root: (root / "train/label/two.png").unlink(), r"A/two\.png has no counterpart in .*train/label"),
    (lambda root: (root / "train/A/two.png").write_bytes(b"no image"), r"cannot read image .*A/two\.png"),
    (lambda root: Image.fromarray(np.zeros((20, 30), np.uint16)).save(root / "train/A/two.png"),
     r"image .*A/two\.png has more than 8 bits a channel: scale it to 8 first"),
])
def test_bad_pairs_are_named(damage, message, tmp_path):
    damage(write(tmp_path, "levir"))
    with pytest.raises(UserError, match=message):
        ChangePairs(tmp_path, "train", "levir", ChangeTransform(None, augment=False))[1]


def test_unknown_colours_layouts_and_folders(tmp_path):
    write(tmp_path, "second", names=("one",))
    overwrite(tmp_path / "train/label2/one.png", np.full((20, 30, 3), 3))
    with pytest.raises(UserError, match=r"label2/one\.png has the unknown colour \(3, 3, 3\)"):
        ChangePairs(tmp_path, "train", "second", None).read(0)
    with pytest.raises(UserError, match="unknown layout 'levi'; near names: levir"):
        ChangePairs(tmp_path, "train", "levi", None)
    with pytest.raises(UserError, match=r"val/im1 is not there"):
        ChangePairs(tmp_path, "val", "second", None)


def test_geometry_is_shared_and_light_is_not():
    """Each pixel's place is coded in both images and the mask: they stay together, whatever is drawn."""
    random.seed(3)
    place = np.arange(40 * 40).reshape(40, 40)
    image = np.stack([place % 40, place // 40, np.full_like(place, 100)], axis=2).astype(np.uint8)
    mask = (place % 7).astype(np.int64)
    transform = ChangeTransform(24, augment=True, light=False)
    seen = set()
    for _ in range(8):
        first, second, labels = transform(image, image, {"change": mask, "first": mask})
        assert torch.equal(first, second)
        assert torch.equal(labels["change"], labels["first"])
        std, mean = torch.tensor([0.229, 0.224]).view(2, 1, 1), torch.tensor([0.485, 0.456]).view(2, 1, 1)
        column, row = ((first[:2] * std + mean) * 255).round().long()
        assert torch.equal((row * 40 + column) % 7, labels["change"])
        seen.add(tuple(row[0, :3].tolist()))
    assert len(seen) > 4
    lit = ChangeTransform(24, augment=True)
    pairs = [lit(image, image, {"change": mask}) for _ in range(8)]
    assert any(not torch.allclose(first, second) for first, second, _ in pairs)


def test_small_images_are_padded_with_what_does_not_count():
    first, _, labels = ChangeTransform(32, augment=False)(
        np.full((20, 20, 3), 90, np.uint8), np.full((20, 20, 3), 90, np.uint8), {"change": np.ones((20, 20), np.int64)})
    assert first.shape == (3, 32, 32)
    assert (labels["change"] == 255).sum() == 32 * 32 - 20 * 20
    assert (labels["change"] == 1).sum() == 20 * 20


def test_normalise():
    assert normalise(np.zeros((1, 1, 3), np.uint8)).flatten().tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_same_pair_of_scenes_however_it_is_reached():
    few, many = ChangeScenes("train", 3, size=96, seed=7), ChangeScenes("train", 30, size=96, seed=7)
    many[11]
    for part in ("first", "second", "first_labels", "second_labels"):
        assert np.array_equal(getattr(few[2], part), getattr(many[2], part))
    with pytest.raises(IndexError):
        few[3]


def test_scenes_change_where_the_labels_say():
    """Both dates show one photograph: what differs much more than light does, lies in the mask."""
    kinds = set()
    for scene in ChangeScenes("validation", 24, size=128):
        assert scene.first.shape == scene.second.shape == (128, 128, 3)
        assert np.array_equal(scene.change, scene.first_labels != scene.second_labels)
        kinds |= {("goes", bool((scene.first_labels[scene.change] > 0).any())),
                  ("comes", bool((scene.second_labels[scene.change] > 0).any())),
                  ("stays", bool(((scene.first_labels > 0) & ~scene.change).any()))}
        if scene.change.sum() > 50:
            difference = np.abs(scene.first.astype(float) - scene.second).mean(2)
            assert difference[scene.change].mean() > difference[~scene.change].mean() + 10
    assert {("goes", True), ("comes", True), ("stays", True)} <= kinds
