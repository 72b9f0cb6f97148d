"""Small real image folders, a trained run, and a way to run the tools, for the tests of train, validate, predict."""

import contextlib
import shutil
from pathlib import Path

import pytest

from vmamba.data import BundledDataset
from vmamba.train import fit

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("one", "two", "three")       # sorted by name they are one, three, two


def write_folder(root, split, first, count):
    """Writes `count` digits of each class, from number `first` on, as PNG files."""
    digits = BundledDataset("digits", "train")
    for label, name in enumerate(CLASSES, start=1):
        folder = root / split / name
        folder.mkdir(parents=True)
        chosen = [index for index, value in enumerate(digits.labels) if value == label][first:first + count]
        for index in chosen:
            digits[index][0].save(folder / f"{index:04}.png")
    return root


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder dataset: 3 classes, 16 training and 5 validation images each. Not to be written to."""
    root = tmp_path_factory.mktemp("digits")
    write_folder(root, "train", 0, 16)
    return write_folder(root, "val", 16, 5)


@pytest.fixture
def own_folder(image_folder, tmp_path):
    """A copy of the folder dataset that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "data"))


def small(data_dir, output, *more):
    """Returns the flags of a training run of a second or two."""
    return ["--model", "test_vmamba", "--data-dir", str(data_dir), "--img-size", "32", "-b", "16", "--epochs", "2",
            "--lr", "2e-3", "--warmup-epochs", "0", "--hflip", "0", "--workers", "0", "--device", "cpu",
            "--output", str(output), "--experiment", "run", *more]


@pytest.fixture(scope="session")
def small_flags():
    return small


@pytest.fixture(scope="session")
def trained(image_folder, tmp_path_factory):
    """The run directory of a finished small run with EMA."""
    output = tmp_path_factory.mktemp("runs")
    flags = small(image_folder, output, "--model-ema", "--model-ema-decay", "0.5")
    with contextlib.redirect_stdout(None):
        assert fit.main(flags) == 0
    return output / "run"
