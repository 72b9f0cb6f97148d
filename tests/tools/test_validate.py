"""tools/validate.py through its command line."""

import csv
import json
import re

import pytest
import torch
from PIL import Image

from vmamba.train import validate
from vmamba.train.checkpoint import load_weights


@pytest.mark.parametrize("ema", [False, True])
def test_reproduces_the_accuracy_of_training(trained, image_folder, tmp_path, ema, capsys):
    with open(trained / "summary.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    prefix = "eval_ema_" if ema else "eval_"
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(image_folder), "--workers", "0",
             "--results-file", str(tmp_path / "r.json")]
    assert validate.main([*flags, "--use-ema"] if ema else flags) == 0
    row = json.loads((tmp_path / "r.json").read_text())
    assert row["top1"] == pytest.approx(float(last[f"{prefix}top1"]), abs=1e-4)
    assert row["loss"] == pytest.approx(float(last[f"{prefix}loss"]), rel=1e-5)
    assert (row["model"], row["num_images"], row["img_size"]) == ("test_vmamba", 15, 32)
    assert f"top1 {row['top1']:.2f} %" in capsys.readouterr().out


def test_csv_results_have_timms_columns(trained, image_folder, tmp_path):
    assert validate.main(["--checkpoint", str(trained / "resume.pt"), "--data-dir", str(image_folder), "--results-file",
                          str(tmp_path / "r.csv"), "--workers", "1"]) == 0
    with open(tmp_path / "r.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {"model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct",
            "interpolation"} <= row.keys()
    assert float(row["top1"]) + float(row["top1_err"]) == pytest.approx(100)


def test_folder_order_of_classes_does_not_matter(trained, image_folder, capsys):
    """The checkpoint knows its class names, so a folder with only some of the classes is labelled right."""
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--split", "val"]
    assert validate.main([*flags, "--data-dir", str(image_folder)]) == 0
    subset = image_folder.parent / "subset" / "val"
    subset.mkdir(parents=True, exist_ok=True)
    if not (subset / "two").exists():
        (subset / "two").symlink_to(image_folder / "val" / "two")
    assert validate.main([*flags, "--data-dir", str(subset.parent)]) == 0
    _, description = load_weights(trained / "last.safetensors")
    assert description.label_names == ["one", "three", "two"]
    assert re.search(r": 5 images", capsys.readouterr().out)


def test_bare_weights_need_model_and_classes(trained, image_folder, tmp_path, capsys):
    weights, _ = load_weights(trained / "last.safetensors")
    torch.save(weights, tmp_path / "bare.pth")
    flags = ["--checkpoint", str(tmp_path / "bare.pth"), "--data-dir", str(image_folder), "--img-size", "32"]
    assert validate.main(flags) == 2
    assert "does not say what model it is: give --model" in capsys.readouterr().err
    assert validate.main([*flags, "--model", "test_vmamba", "--num-classes", "3"]) == 0
    assert validate.main([*flags, "--model", "test_vmamba", "--num-classes", "4"]) == 2
    assert re.fullmatch(r"error: weights of \S+ do not fit test_vmamba: .*\n", capsys.readouterr().err)


def test_several_checkpoints_in_one_table(trained, image_folder, tmp_path, capsys):
    names = [str(trained / f"{name}.safetensors") for name in ("last", "model_best", "last_ema")]
    assert validate.main(["--data-dir", str(image_folder), "--results-file", str(tmp_path / "r.csv"), "--checkpoint",
                          *names]) == 0
    with open(tmp_path / "r.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in table] == names
    assert [float(row["images_per_second"]) > 0 for row in table] == [True] * 3
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_report_of_classes_and_mistakes(trained, image_folder, tmp_path):
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(image_folder)]
    assert validate.main([*flags, "--classes-file", str(tmp_path / "c.csv"), "--mistakes-file", str(tmp_path / "m.png"),
                          "--results-file", str(tmp_path / "r.json"), "--tta", "hflip"]) == 0
    with open(tmp_path / "c.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == ["one", "three", "two"]
    right = sum(int(row["right"]) for row in table)
    assert 100 * right / 15 == pytest.approx(json.loads((tmp_path / "r.json").read_text())["top1"], abs=1e-3)
    assert [row["recall"] for row in table] == [f"{100 * int(row['right']) / 5:.2f}" for row in table]
    with Image.open(tmp_path / "m.png") as sheet:
        assert min(sheet.size) > 100


def test_valid_labels_pick_the_models_classes(trained, image_folder, tmp_path, capsys):
    """A split of two of the classes, which its own order numbers 0 and 1."""
    for name in ("two", "three"):
        (tmp_path / "data" / "val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "val" / name).symlink_to(image_folder / "val" / name)
    (tmp_path / "labels.txt").write_text("1\n2\n")
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(tmp_path / "data"), "--classes-file",
             str(tmp_path / "c.csv"), "--valid-labels", str(tmp_path / "labels.txt")]
    assert validate.main(flags) == 0
    with open(tmp_path / "c.csv", newline="") as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["5", "5"]
    for wrong in ("1\n3", "1\n1", "x", ""):
        (tmp_path / "labels.txt").write_text(wrong)
        assert validate.main(flags) == 2
        assert "--valid-labels" in capsys.readouterr().err


BAD = {
    "num-classes": (["--num-classes", "7"], r"checkpoint \S+ has num classes 3, not 7 as --num-classes says"),
    "model": (["--model", "test_convnext"], r"has model test_vmamba, not test_convnext"),
    "folder": (["--data-dir", "/nonexistent"], r"data folder /nonexistent does not exist"),
    "class-map": (["--class-map", "/nonexistent.txt"], r"Cannot locate specified class map"),
    "checkpoint": (["--checkpoint", "/nonexistent.safetensors"], r"checkpoint /nonexistent.safetensors does not exist"),
    "image-size": (["--input-size", "1", "32", "32"], r"--input-size 1 32 32 does not fit a model of 3 channels"),
    "results": (["--results-file", "/dev/null/r.csv"], r"cannot write to output folder /dev/null"),
    "results-late": (["--results-file", "OUT/r.csv", "--checkpoint", "x.pth"], r"x.pth does not exist"),
    "results-ending": (["--results-file", "r.txt"], r"must end in .csv or .json"),
    "batch-size": (["-b", "0"], r"--batch-size must be at least 1"),
    "classes-file": (["--classes-file", "c.txt"], r"c.txt must be a file that ends in .csv"),
    "mistakes-file": (["--mistakes-file", "OUT/m.png", "--mistakes", "0"], r"--mistakes must be at least 1"),
    "two-checkpoints": (["--checkpoint", "a.pth", "b.pth", "--classes-file", "OUT/c.csv"], r"are for one checkpoint"),
    "valid-labels": (["--valid-labels", "/nonexistent"], r"cannot read --valid-labels /nonexistent: No such file"),
    "device": (["--device", "nowhere"], r"cannot use --device nowhere"),
    "flag": (["--checkpoints", "x"], r"unrecognized arguments"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, trained, image_folder, tmp_path, capsys):
    flags, message = BAD[case]
    flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in flags]
    argv = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(image_folder), *flags]
    assert validate.main(argv) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error
    assert list(tmp_path.iterdir()) == []


def test_no_weights(capsys):
    assert validate.main(["--dataset", "digits", "--model", "test_vmamba"]) == 2
    assert "test_vmamba has no weights yet" in capsys.readouterr().err
    assert validate.main(["--dataset", "digits"]) == 2
    assert "no model" in capsys.readouterr().err
