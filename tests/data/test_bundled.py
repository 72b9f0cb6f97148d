"""The bundled datasets: what is in them, and that their split never moves."""

import hashlib

import numpy as np
import pytest

from vmamba.data import BundledDataset
from vmamba.data.bundled import BUNDLED, validation_mask
from vmamba.errors import UserError

SIZES = {"digits": (1442, 355, (8, 8)), "mnist5k": (4000, 1000, (28, 28)), "textures": (615, 153, (32, 32))}
CLASSES = {"digits": 10, "mnist5k": 10, "textures": 3}
# of the concatenated bytes of the validation images: a split that moves would make results incomparable
VALIDATION_SHA256 = {
    "digits": "747b8e40cc4d21a26c27e6681d6b5641b1d1c96162f713457890ca5ee65f561d",
    "mnist5k": "fb8e189a3c37b5f9dc83ce41dd4c5f7a66f945fa0ee69010abf460b9a3e5d2e4",
    "textures": "568f65321faa197d1d5c0189dd4c7cdbff5a55114be3b15b4154e159fe33534b",
}


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_split(name):
    train, validation = BundledDataset(name, "train"), BundledDataset(name, "validation")
    assert (len(train), len(validation), train[0][0].size) == SIZES[name]
    assert train.classes == validation.classes == [str(label) for label in range(CLASSES[name])]
    assert hashlib.sha256(validation.images.tobytes()).hexdigest() == VALIDATION_SHA256[name]
    shares = np.bincount(validation.labels) / (np.bincount(train.labels) + np.bincount(validation.labels))
    assert shares.min() > 0.19
    assert shares.max() <= 0.2


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_no_image_is_in_both_splits(name):
    train, validation = ({image.tobytes() for image in BundledDataset(name, split).images}
                         for split in ("train", "validation"))
    assert not train & validation


def test_mask_takes_each_fifth_of_a_class():
    labels = np.array([0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    assert np.flatnonzero(validation_mask(labels)).tolist() == [5, 9]


def test_parts_of_a_split():
    """A part of each class; parts that follow on each other make the whole and share nothing."""
    whole = BundledDataset("textures", "train")
    parts = [BundledDataset("textures", f"train[{part}]") for part in (":20%", "20%:40%", "40%:")]
    assert [np.bincount(part.labels).tolist() for part in parts] == [[41] * 3, [41] * 3, [123] * 3]
    images = [image.tobytes() for part in parts for image in part.images]
    assert sorted(images) == sorted(image.tobytes() for image in whole.images)
    assert len(set(images)) == len({image.tobytes() for image in whole.images})
    held_out = {image.tobytes() for image in BundledDataset("textures", "validation[:50%]").images}
    assert len(held_out) == 3 * 26
    assert not held_out & set(images)
    assert (BundledDataset("textures", "train[:]").images == whole.images).all()


@pytest.mark.parametrize(("split", "message"), [
    ("test[:10%]", "splits train and validation, not"), ("train[10]", "written as train"),
    ("train[50%:20%]", "begin before it ends"), ("train[:120%]", "100 % at most"),
    ("validation[:1%]", "holds no images")])
def test_bad_parts(split, message):
    with pytest.raises(UserError, match=message):
        BundledDataset("digits", split)


def test_images_use_the_whole_range_and_the_mode_asked_for():
    image, label = BundledDataset("digits", "train", input_img_mode="L")[0]
    assert (image.mode, image.getextrema(), label) == ("L", (0, 239), 0)
    assert BundledDataset("digits", "train")[0][0].mode == "RGB"


def test_unknown_split():
    with pytest.raises(UserError, match="splits train and validation, not 'test'"):
        BundledDataset("digits", "test")
