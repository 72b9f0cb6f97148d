"""The digit scenes: always the same, nothing shared by the splits, and boxes, masks and labels that agree."""
import numpy as np
import pytest

from vmamba.data.digit_scenes import PHOTOGRAPHS, DigitScenes
from vmamba.errors import UserError

SPLITS = ("train", "validation")


@pytest.mark.parametrize("split", SPLITS)
def test_same_scene_however_it_is_reached(split):
    few, many = DigitScenes(split, 3, size=96, seed=7), DigitScenes(split, 30, size=96, seed=7)
    many[11]
    assert np.array_equal(few[2].image, many[2].image)
    assert np.array_equal(few[2].label_map, many[2].label_map)
    assert [digit.box for digit in few[2].digits] == [digit.box for digit in many[2].digits]


def test_seed_and_split_matter():
    scenes = [DigitScenes("train", 1)[0], DigitScenes("train", 1, seed=1)[0], DigitScenes("validation", 1)[0]]
    assert len({scene.image.tobytes() for scene in scenes}) == 3


def test_splits_share_no_photograph():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["validation"])


@pytest.mark.parametrize("split", SPLITS)
def test_scene_and_digits_agree(split):
    labels = set()
    for scene in (scenes := DigitScenes(split, 40)):
        assert (scene.image.shape, scene.image.dtype) == ((160, 160, 3), np.uint8)
        assert 1 <= len(scene.digits) <= 4
        painted = np.zeros((160, 160), dtype=bool)
        for digit in scene.digits:
            labels.add(digit.label)
            left, top, width, height = digit.box
            inside = digit.mask[top:top + height, left:left + width]
            assert inside.sum() == digit.mask.sum() > 0
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any()                               # the box is the smallest
            assert not (painted & digit.mask).any()
            painted |= digit.mask
            assert set(np.unique(scene.label_map[digit.mask])) == {1 + digit.label}
        assert np.array_equal(scene.label_map > 0, painted)
    assert len(scenes) == 40
    assert labels == set(range(10))


def test_digits_stand_out():
    """The ink's grey level differs from that of the same photograph without it, which no digit leaves as it was."""
    for scene in DigitScenes("train", 20):
        background = scene.image[scene.label_map == 0].astype(float)
        assert background.std() > 1
        for digit in scene.digits:
            ink = scene.image[digit.mask].astype(float)
            left, top, width, height = digit.box
            around = ~digit.mask[top:top + height, left:left + width]
            near = scene.image[top:top + height, left:left + width][around].astype(float)
            assert abs(ink.mean() - near.mean()) > 10


@pytest.mark.parametrize(("arguments", "message"), [
    (("test", 5), "splits train and validation, not 'test'"),
    (("train", 0), "at least 1, not 0"),
    (("train", 5, 32), "between 64 and 300, not 32"),
])
def test_bad_arguments(arguments, message):
    split, count, *size = arguments
    with pytest.raises(UserError, match=message):
        DigitScenes(split, count, **({"size": size[0]} if size else {}))


def test_index_out_of_range():
    with pytest.raises(IndexError, match="scene 3 of 3"):
        DigitScenes("train", 3)[3]


def test_scenes_of_one_digit():
    scenes = DigitScenes("validation", 12, size=64, most=1)
    assert [len(scene.digits) for scene in scenes] == [1] * 12
    assert len({scene.digits[0].label for scene in scenes}) > 3
