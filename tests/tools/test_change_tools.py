"""make_change_scenes, train_change and predict_change through their command lines."""
import csv
import shutil
from pathlib import Path

import make_change_scenes
import numpy as np
import pytest
import show_change
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

from vmamba.data.change_pairs import SECOND_COLOURS
from vmamba.tasks.change_detection import predict, train
from vmamba.tasks.change_detection.predict import predict_windows
from vmamba.tasks.loop import read_options


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Ten training and two validation pairs. Not to be written to."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert make_change_scenes.main(
        ["--output", str(folder), "--train", "10", "--validation", "2", "--size", "64"]) == 0
    return folder


def flags(scenes, output, *more):
    return ["--data-dir", str(scenes), "--encoder", "test_vmamba", "--dim", "16", "--crop", "32", "--epochs", "2",
            "-b", "4", "--workers", "0", "--device", "cpu", "--output", str(output), "--experiment", "run", *more]


@pytest.fixture(scope="module")
def trained(scenes, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    assert train.main(flags(scenes, output)) == 0
    return output / "run"


def test_scenes_are_written_in_the_layout_of_levir(scenes, capsys):
    assert len(list((scenes / "train" / "A").iterdir())) == len(list((scenes / "train" / "label").iterdir())) == 10
    with Image.open(scenes / "val" / "label" / "00001.png") as mask:
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
    assert "not a benchmark" in (scenes / "README.txt").read_text()
    assert make_change_scenes.main(["--output", str(scenes)]) == 2
    assert "exists: delete it" in capsys.readouterr().err


def rows(run):
    with open(run / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_run_directory(trained):
    assert {"args.yaml", "curves.png", "last.safetensors", "model_best.safetensors", "resume.pt", "summary.csv"} == {
        path.name for path in trained.iterdir()}
    assert [row["epoch"] for row in rows(trained)] == ["1", "2"]
    assert {"f1", "iou", "kappa", "oa", "train_loss"} <= rows(trained)[0].keys()


def test_options_of_a_run_are_a_config(trained):
    args, _ = read_options(train._parser(), ["--config", str(trained / "args.yaml"), "--epochs", "7"])
    assert (args.encoder, args.dim, args.crop, args.epochs, args.pretrained) == ("test_vmamba", 16, 32, 7, False)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "change_detection").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_read(path):
    args, _ = read_options(train._parser(), ["--config", str(path), "--device", "cpu"])
    assert args.encoder in path.stem


def test_resumed_run_equals_uninterrupted_run(scenes, trained, tmp_path, monkeypatch, capsys):
    """The second epoch fails once; resumed, it comes out as in one go."""
    evaluate, calls = train.evaluate_pairs, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate_pairs", failing)
    assert train.main(flags(scenes, tmp_path)) == 130
    torch.manual_seed(0)
    assert train.main(flags(scenes, tmp_path)) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert train.main(flags(scenes, tmp_path, "--resume")) == 0
    assert rows(tmp_path / "run") == rows(trained)
    left, right = load_file(trained / "last.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_layouts_train_their_task(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("im1", "im2", "label1", "label2"):
            (tmp_path / split / folder).mkdir(parents=True)
            for i in range(2):
                array = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                if folder.startswith("label"):      # both dates have a label at the same places
                    changed = np.random.default_rng(i).random((32, 32, 1)) < 0.3
                    array = np.where(changed, np.array(SECOND_COLOURS[1 + i]), 255).astype(np.uint8)
                Image.fromarray(array).save(tmp_path / split / folder / f"{i}.png")
    assert train.main(flags(tmp_path, tmp_path, "--layout", "second", "-b", "2", "--epochs", "1")) == 0
    assert "sek" in capsys.readouterr().out
    assert predict.main([
        "--checkpoint", str(tmp_path / "run" / "last.safetensors"), "--first", str(tmp_path / "val" / "im1"),
        "--second", str(tmp_path / "val" / "im2"), "--output", str(tmp_path / "maps"), "--device", "cpu"]) == 0
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        f"{i}_{name}{end}.png" for i in range(2) for name in ("change", "first", "second") for end in ("", "_overlay")}
    for name, greatest in (("change", 255), ("first", 6)):      # land cover is class numbers
        with Image.open(tmp_path / "maps" / f"0_{name}.png") as image:
            assert np.asarray(image).max() <= greatest


@pytest.mark.parametrize(("more", "message"), [
    (["--data-dir", "nowhere"], "nowhere/train/A is not there"),
    (["--encoder", "test_vim"], "cannot build a model with the encoder test_vim: test_vim has maps at strides 16"),
    (["-b", "99"], "the training set has 10 samples, fewer than one batch of 99"),
    (["--resume"], "there is nothing to resume in"),
    (["--lr", "1e30", "--warmup-epochs", "0"], "the training loss became"),
])
def test_bad_options_are_explained(scenes, tmp_path, more, message, capsys):
    assert train.main(flags(scenes, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


class Echo(torch.nn.Module):
    """Logits that are the first image's first two channels; notes the sizes it is given."""

    def __init__(self):
        super().__init__()
        self.unused, self.sizes = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, first, second):
        self.sizes.append(tuple(first.shape[2:]))
        return {"change": first[:, :2]}


@pytest.mark.parametrize("size", [(50, 70), (16, 64), (20, 33), (32, 32)])
@pytest.mark.parametrize("overlap", [0, 10, 31])
def test_windows_cover_images_of_any_size_and_agree(size, overlap):
    image, model = torch.randn(3, *size), Echo()
    found = predict_windows(model, image, image, 32, overlap)["change"]
    torch.testing.assert_close(found, image[:2].softmax(0))
    assert all(max(window) <= 32 for window in model.sizes)


def test_one_window_equals_the_model(trained, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)     # as if the images were larger than PIL opens by itself
    pair = [str(scenes / "val" / date / "00001.png") for date in ("A", "B")]
    command = ["--checkpoint", str(trained / "model_best.safetensors"), "--first", pair[0], "--second", pair[1],
               "--device", "cpu"]
    assert predict.main([*command, "--output", str(tmp_path / "whole")]) == 0
    assert predict.main([*command, "--output", str(tmp_path / "cut"), "--window", "48", "--overlap", "16"]) == 0
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.undo()
    for folder in ("whole", "cut"):
        with Image.open(tmp_path / folder / "00001_change.png") as image:
            assert image.size == (64, 64)
            assert set(np.unique(np.asarray(image))) <= {0, 255}
        with Image.open(tmp_path / folder / "00001_change_overlay.png") as image:
            assert image.mode == "RGB"


def test_geotiff_keeps_its_place(trained, scenes, tmp_path):
    scale, tie = (0.5, 0.5, 0.0), (0.0, 0.0, 0.0, 500000.0, 4000000.0, 0.0)
    for date in ("A", "B"):
        with Image.open(scenes / "val" / date / "00002.png") as image:
            tifffile.imwrite(tmp_path / f"{date}.tif", np.asarray(image), extratags=[
                (33550, 12, 3, scale, True), (33922, 12, 6, tie, True),
                (34735, 3, 8, (1, 1, 0, 1, 3072, 0, 1, 32633), True)])
    assert predict.main([
        "--checkpoint", str(trained / "last.safetensors"), "--first", str(tmp_path / "A.tif"), "--second",
        str(tmp_path / "B.tif"), "--output", str(tmp_path / "out"), "--format", "tif", "--device", "cpu"]) == 0
    with tifffile.TiffFile(tmp_path / "out" / "A_change.tif") as file:
        tags = {tag.code: tag.value for tag in file.pages[0].tags}
        assert (tags[33550], tags[33922]) == (scale, tie)
        assert tags[34735][-1] == 32633
        assert file.asarray().shape == (64, 64)


def test_prediction_names_what_is_wrong(trained, scenes, tmp_path, capsys):
    Image.new("RGB", (64, 65)).save(tmp_path / "tall.png")
    first = str(scenes / "val" / "A" / "00001.png")
    command = ["--checkpoint", str(trained / "last.safetensors"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    cases = {
        "is 65 x 64 pixels, but": ["--first", first, "--second", str(tmp_path / "tall.png")],
        "must both be files or both be folders": ["--first", first, "--second", str(tmp_path)],
        "has no counterpart in": ["--first", str(scenes / "val" / "A"), "--second", str(tmp_path)],
        "--overlap must lie between 0 and --window 32, got 32": [
            "--first", first, "--second", first, "--window", "32", "--overlap", "32"],
    }
    for message, more in cases.items():
        assert predict.main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    shutil.copy(first, tmp_path / "image.safetensors")
    assert predict.main([*command[2:], "--checkpoint", str(tmp_path / "image.safetensors"), "--first", first,
                         "--second", first]) == 2
    assert "cannot read checkpoint" in capsys.readouterr().err


def test_pictures_of_predictions_and_curves(trained, scenes, tmp_path, capsys):
    predictions, curves = tmp_path / "docs" / "predictions.jpg", tmp_path / "docs" / "curves.png"
    assert show_change.main([str(trained), "--data-dir", str(scenes), "--pairs", "3", "--predictions", str(predictions),
                             "--curves", str(curves)]) == 0
    with Image.open(predictions) as image:      # two pairs are there, four columns
        assert image.width > 1.5 * image.height
    with Image.open(curves) as image:
        assert image.width > image.height
    assert show_change.main([str(tmp_path), "--curves", str(curves)]) == 2
    assert "summary.csv is not there" in capsys.readouterr().err


def test_hits_and_errors_have_colours_of_their_own():
    found, truth = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    assert [tuple(pixel) for pixel in show_change.coloured(found, truth)[0]] == [
        show_change.FOUND, show_change.FALSE, show_change.MISSED, (0, 0, 0)]
