"""Decoded images that are kept: the same images, from files that are read once, whatever happens to the entries."""
import errno
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmamba.data import create_dataset
from vmamba.data.datasets import UnreadableImageError
from vmamba.errors import UserError


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(2):
            pixels = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "train" / name / f"{number}.jpg")
    return tmp_path / "data"


def entries(cache):
    return sorted(path for path in Path(cache).rglob("*") if path.is_file())


def contents(dataset):
    return [(image.mode, image.size, image.tobytes(), label) for image, label in dataset]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_are_the_same_and_read_once(folder, tmp_path, monkeypatch, mode, kind):
    if kind == "tar":
        with tarfile.open(folder / "train.tar", "w") as file:
            for path in sorted((folder / "train").rglob("*.jpg")):
                file.add(path, path.relative_to(folder / "train"))
    plain = contents(create_dataset("", str(folder), "train", input_img_mode=mode))
    dataset = create_dataset("", str(folder), "train", input_img_mode=mode, cache=str(tmp_path / "cache"))
    assert contents(dataset) == plain
    assert len(entries(tmp_path / "cache")) == 4
    monkeypatch.setattr(type(dataset), "_read", None)       # whoever decodes now fails
    assert contents(dataset) == plain


def test_a_file_that_is_replaced_is_read_anew(folder, tmp_path):
    dataset = create_dataset("", str(folder), "train", cache=str(tmp_path / "cache"))
    before = contents(dataset)
    Image.new("RGB", (3, 3), "red").save(folder / "train" / "ant" / "0.jpg")
    after = contents(dataset)
    assert (after[0][1], after[1:]) == ((3, 3), before[1:])


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:5], lambda content: content[:-1],
                                    lambda content: content[:-1] + bytes([content[-1] ^ 1])])
def test_damaged_entries_are_made_again(folder, tmp_path, damage):
    dataset = create_dataset("", str(folder), "train", cache=str(tmp_path / "cache"))
    before = contents(dataset)
    for path in entries(tmp_path / "cache"):
        path.write_bytes(damage(path.read_bytes()))
    assert contents(dataset) == before
    good = [path.read_bytes() for path in entries(tmp_path / "cache")]
    assert contents(dataset) == before
    assert good == [path.read_bytes() for path in entries(tmp_path / "cache")]


def test_a_full_disk_is_said_once(folder, tmp_path, monkeypatch, capsys):
    dataset = create_dataset("", str(folder), "train", cache=str(tmp_path / "cache"))
    before = contents(create_dataset("", str(folder), "train"))

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    assert contents(dataset) == before
    assert capsys.readouterr().err == (
        f"warning: --data-cache {tmp_path}/cache takes no more images: No space left on device; what it does not have "
        "is decoded each time\n")
    assert entries(tmp_path / "cache") == []


def test_unreadable_images_are_not_kept(folder, tmp_path):
    path = folder / "train" / "bee" / "0.jpg"
    path.write_bytes(path.read_bytes()[:100])
    dataset = create_dataset("", str(folder), "train", cache=str(tmp_path / "cache"))
    with pytest.raises(UnreadableImageError, match=r"cannot read image \S+/bee/0.jpg"):
        dataset[2]
    path.unlink()
    with pytest.raises(UnreadableImageError, match=r"cannot read image \S+/bee/0.jpg: .*No such file"):
        dataset[2]
    assert not (tmp_path / "cache").exists()


def test_other_datasets_are_refused(tmp_path):
    with pytest.raises(UserError, match="--data-cache is for image folders and tar files"):
        create_dataset("digits", cache=str(tmp_path))
