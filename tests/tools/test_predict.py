"""tools/predict.py through its command line."""

import csv
import json
import re
import shutil

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from vmamba.train import predict


@pytest.fixture
def images(image_folder, tmp_path):
    """A folder with five good images."""
    return shutil.copytree(image_folder / "val" / "three", tmp_path / "images")


def run(trained, *argv):
    return predict.main(["--checkpoint", str(trained / "last.safetensors"), *map(str, argv)])


def test_prints_the_classes_of_each_image(trained, images, capsys):
    assert run(trained, images, "--topk", 2) == 0
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert error == ""
    assert [line.split(":")[0] for line in lines] == sorted(map(str, images.iterdir()))
    assert all(re.fullmatch(r"\S+: (one|two|three) [\d.]+ %, (one|two|three) [\d.]+ %", line) for line in lines)


def test_json_equals_the_model(trained, images, tmp_path):
    assert run(trained, images, "--output", tmp_path / "p.json", "--batch-size", 2) == 0
    content = json.loads((tmp_path / "p.json").read_text())
    model = timm.create_model("test_vmamba", num_classes=3).eval()
    model.load_state_dict(load_file(trained / "last.safetensors"))
    config = {"input_size": (3, 32, 32), "crop_pct": model.pretrained_cfg["crop_pct"],
              "interpolation": model.pretrained_cfg["interpolation"]}
    transform = timm.data.create_transform(**config)
    assert len(content) == 5
    for entry in content:
        with Image.open(entry["filename"]) as image, torch.no_grad():
            expected = model(transform(image.convert("RGB"))[None])[0].softmax(-1)
        assert [p["index"] for p in entry["predictions"]] == expected.argsort(descending=True).tolist()
        for p in entry["predictions"]:
            assert p["class"] == ("one", "three", "two")[p["index"]]
            assert p["probability"] == pytest.approx(expected[p["index"]].item(), abs=2e-6)


def test_unreadable_files_are_named_and_the_others_predicted(trained, images, tmp_path, capsys):
    first, second, *_ = sorted(images.iterdir())
    first.write_bytes(first.read_bytes()[:50])
    second.write_bytes(b"")
    missing = tmp_path / "missing.png"
    assert run(trained, images, missing, "--output", tmp_path / "p.csv", "--topk", 1) == 1
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 3
    lines = error.splitlines()
    for path, line in zip((first, second, missing), lines, strict=False):
        assert line.startswith(f"error: cannot read image {path}: ")
    assert lines[3:] == ["error: 3 of 6 images could not be read"]
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["filename", "top1_class", "top1_index", "top1_probability", "error"]
    assert [bool(row["error"]) for row in rows] == [True, True, False, False, False, True]
    assert all(bool(row["top1_class"]) != bool(row["error"]) for row in rows)
    assert all(0 < float(row["top1_probability"]) <= 1 for row in rows[2:5])


def test_only_unreadable_files(trained, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no image")
    assert run(trained, tmp_path / "a.png", "--output", tmp_path / "p.json") == 1
    assert json.loads((tmp_path / "p.json").read_text())[0].keys() == {"filename", "error"}
    assert "1 of 1 images could not be read" in capsys.readouterr().err


def test_ema_weights_differ(trained, images, tmp_path):
    assert run(trained, images, "--output", tmp_path / "a.json") == 0
    assert run(trained, images, "--output", tmp_path / "b.json", "--use-ema") == 0
    assert (tmp_path / "a.json").read_text() != (tmp_path / "b.json").read_text()


@pytest.mark.parametrize(("argv", "message"), [
    (["/nonexistent"], "/nonexistent does not exist"),
    (["EMPTY"], r"folder \S+ holds no images"),
    ([], "the following arguments are required: IMAGE_OR_FOLDER"),
    (["IMAGES", "--topk", "0"], "--topk and --batch-size must be at least 1"),
    (["IMAGES", "--output", "p.txt"], "must end in .csv or .json"),
    (["IMAGES", "--output", "/dev/null/p.csv"], "cannot write to output folder /dev/null"),
    (["IMAGES", "--num-classes", "9"], "has num classes 3, not 9"),
    (["IMAGES", "--checkpoint", "/nonexistent.pth"], "checkpoint /nonexistent.pth does not exist"),
])
def test_bad_input(argv, message, trained, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"IMAGES": str(images), "EMPTY": str(tmp_path / "empty")}
    assert run(trained, *[places.get(item, item) for item in argv]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error
