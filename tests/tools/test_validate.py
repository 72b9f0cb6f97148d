"""tools/validate.py through its command line."""

import csv
import json
import re

import pytest
import torch
from PIL import Image

from vmamba.errors import UserError
from vmamba.train import validate
from vmamba.train.checkpoint import load_weights
from vmamba.train.label_maps import NAMED_SPLITS, read_valid_labels


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
    "class-map": (["--class-map", "/nonexistent.txt"], r"cannot read --class-map /nonexistent.txt: No such file"),
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
    "valid-labels-name": (["--valid-labels", "imagenet-a"], r"imagenet-a is for models of 1000 classes, not 3"),
    "real-labels": (["--real-labels", "/nonexistent"], r"cannot read --real-labels /nonexistent: No such file"),
    "real-labels-name": (["--real-labels", "imagenet-real"], r"imagenet-real is for models of 1000 classes, not 3"),
    "real-labels-bundled": (["--dataset", "digits", "--real-labels", "REAL"], r"--real-labels needs images in files"),
    "real-labels-count": (["--real-labels", "REAL"], r"the split has 15 images, --real-labels \S+ another number"),
    "real-labels-class": (["--real-labels", "TOO_HIGH"], r"must hold a list of class indices from 0 to 2"),
    "real-labels-yaml": (["--real-labels", "NO_JSON"], r"cannot read --real-labels \S+: Expecting value"),
    "two-label-maps": (["--real-labels", "REAL", "--valid-labels", "x"], r"are for different splits"),
    "top-k": (["--top-k", "0"], r"--top-k must be at least 1, not 0"),
    "device": (["--device", "nowhere"], r"cannot use --device nowhere"),
    "flag": (["--checkpoints", "x"], r"unrecognized arguments"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, trained, image_folder, tmp_path, tmp_path_factory, capsys):
    flags, message = BAD[case]
    bad = tmp_path_factory.mktemp("bad")
    for name, text in (("REAL", "[[0], []]"), ("TOO_HIGH", "[[3]]"), ("NO_JSON", "labels:")):
        (bad / name).write_text(text)
    flags = [str(bad / flag) if (bad / flag).is_file() else flag.replace("OUT", str(tmp_path / "out"))
             for flag in flags]
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


def test_more_accuracies(trained, image_folder, tmp_path, capsys):
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(image_folder)]
    assert validate.main([*flags, "--top-k", "5", "2", "--results-file", str(tmp_path / "r.json")]) == 0
    row = json.loads((tmp_path / "r.json").read_text())
    assert row["top1"] <= row["top2"] <= row["top5"] == 100
    assert f"top2 {row['top2']:.2f} %" in capsys.readouterr().out


@pytest.fixture
def named_like_imagenet(image_folder, tmp_path):
    """The validation images in one order, under the names of ImageNet's; returns the folder and their classes."""
    labels = []
    paths = sorted((image_folder / "val").rglob("*.png"))
    for number, path in enumerate(paths, start=1):
        folder = tmp_path / "data" / "val" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").symlink_to(path)
        labels.append(["one", "three", "two"].index(path.parent.name))
    return tmp_path / "data", labels


def test_real_labels(trained, named_like_imagenet, tmp_path):
    """With the split's own labels nothing changes; more right classes are more right images; none do not count."""
    folder, labels = named_like_imagenet
    flags = ["--checkpoint", str(trained / "last.safetensors"), "--data-dir", str(folder), "--results-file",
             str(tmp_path / "r.json"), "--real-labels", str(tmp_path / "real.json"), "-b", "4"]

    def run(real):
        (tmp_path / "real.json").write_text(json.dumps(real))
        assert validate.main(flags) == 0
        return json.loads((tmp_path / "r.json").read_text())

    row = run([[label] for label in labels])
    assert (row["real_top1"], row["real_top5"], row["real_images"]) == (pytest.approx(row["top1"], abs=1e-3), 100, 15)
    assert run([[0, 1, 2]] * 15)["real_top1"] == 100
    few = run([[(label + shift) % 3 for shift in (1, 2)] for label in labels[:12]] + [[]] * 3)
    assert few["real_images"] == 12
    wrong = run([[(label + 1) % 3, (label + 2) % 3] for label in labels])
    assert wrong["real_top1"] == pytest.approx(100 - row["top1"], abs=1e-3)


def test_named_splits_of_imagenet():
    indices = {name: read_valid_labels(name, 1000) for name in NAMED_SPLITS}
    assert [len(indices[name]) for name in NAMED_SPLITS] == [200, 200, 1000]
    # ImageNet-A begins with the stingray, ImageNet-R with the goldfish
    assert [indices[name][:3].tolist() for name in NAMED_SPLITS] == [[6, 11, 13], [1, 2, 4], [0, 1, 2]]
    with pytest.raises(UserError, match="imagenet-a is for models of 1000 classes, not 3"):
        read_valid_labels("imagenet-a", 3)
