"""tools/analyze.py on real digits: what each command writes, and how it refuses what cannot be."""
import contextlib
import csv
import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.analysis.cli.main import main
from vmamba.train import predict
from vmamba.train.checkpoint import load_weights


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder):
    found = sorted(path.name for path in folder.glob("*.png"))
    for name in found:
        with Image.open(folder / name) as image:
            assert len(image.convert("L").getcolors(1 << 16)) > 10      # something is drawn
    return found


@pytest.fixture(scope="module")
def images(image_folder):
    """Two digits as files."""
    return [str(sorted((image_folder / "val" / name).iterdir())[0]) for name in ("one", "two")]


@pytest.fixture(scope="module")
def weights(trained):
    return ["--checkpoint", str(trained / "model_best.safetensors"), "--device", "cpu"]


@pytest.fixture(scope="module")
def masks(image_folder, tmp_path_factory):
    """Where the ink is."""
    root = tmp_path_factory.mktemp("masks")
    for path in image_folder.rglob("*.png"):
        place = root / path.relative_to(image_folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(Image.open(path).convert("L")) > 100).astype(np.uint8) * 255).save(place)
    return root


def test_receptive_field(images, weights, tmp_path, capsys):
    assert main(["erf", *images, *weights, "--output", str(tmp_path)]) == 0
    assert pictures(tmp_path) == ["erf.png"]
    rows = table(tmp_path / "erf.csv")
    assert [(row["stage"], row["map"]) for row in rows] == [
        ("stages.0", "8x8"), ("stages.1", "4x4"), ("stages.2", "2x2"), ("stages.3", "1x1")]
    assert 0 < float(rows[0]["area_90"]) < float(rows[1]["area_90"]) <= 1
    assert "stages.3: diameter" in capsys.readouterr().out


def test_attention(images, weights, tmp_path):
    layer = "stages.1.blocks.0.mixer"
    assert main(["attention", *images, *weights, "--output", str(tmp_path), "--layers", layer,
                 "--pixel", "0", "31"]) == 0
    stems = [image.rpartition("/")[2].removesuffix(".png") for image in images]
    assert pictures(tmp_path) == sorted(f"{stem}_stages-1-blocks-0-mixer.png" for stem in stems)
    rows = table(tmp_path / "attention.csv")
    assert len(rows) == 2 * 2 * 5       # images, relations, four directions and all
    first = [row for row in rows if row["image"] == stems[0] and row["relation"] == "reads"]
    # the last of its row: by rows it reads the three before it, by columns the whole map but the last three
    assert float(first[0]["effective_places"]) <= 4
    assert 4 < float(first[1]["effective_places"]) <= 13
    *apart, merged = (float(row["total"]) for row in first)
    assert 0 < merged <= sum(apart) * 1.00001      # directions may cancel
    assert all(abs(float(row["skip"]) - 1) < 0.1 for row in rows)       # D starts at 1


def test_attention_of_a_class_token(images, tmp_path, capsys):
    assert main(["attention", images[0], "--model", "test_vim", "--img-size", "64", "--device", "cpu",
                 "--class-token", "--output", str(tmp_path)]) == 0
    assert "note: no weights were named: this is test_vim as it is initialised" in capsys.readouterr().err
    rows = table(tmp_path / "attention.csv")
    assert {row["layer"] for row in rows} == {f"blocks.{i}.mixer" for i in range(3)}
    assert all(0 < float(row["class_token_share"]) < 1 for row in rows)
    assert len(pictures(tmp_path)) == 3


def test_layers_are_listed(images, weights, tmp_path, capsys):
    output = tmp_path / "none"
    assert main(["attention", *images, *weights, "--layers", "list", "--output", str(output)]) == 0
    assert capsys.readouterr().out.split()[0] == "stages.0.blocks.0.mixer"
    assert not output.exists()


def test_class_activation(images, weights, tmp_path):
    assert main(["cam", *images, *weights, "--output", str(tmp_path), "--class", "two", "--stages", "1", "2"]) == 0
    assert len(pictures(tmp_path)) == 2
    rows = table(tmp_path / "cam.csv")
    assert [row["stage"] for row in rows] == ["stages.1", "stages.2"] * 2
    assert {row["class"] for row in rows} == {"two"}
    assert all(0 <= int(row["peak_row"]) < 32 for row in rows)


def test_decay(images, weights, tmp_path):
    assert main(["decay", *images, *weights, "--output", str(tmp_path)]) == 0
    rows = table(tmp_path / "decay.csv")
    assert len(rows) == 6 * 4
    assert all(0 < float(row["decay_p5"]) <= float(row["decay_p95"]) < 1 for row in rows)
    assert pictures(tmp_path) == ["decay.png"]


def test_correlation(image_folder, masks, weights, tmp_path, capsys):
    assert main(["correlation", "--data-dir", str(image_folder), "--split", "val", "--masks", str(masks / "val"),
                 *weights, "--confident", "0.5", "--layers", "stages.1.blocks.0.mixer", "--workers", "0",
                 "--output", str(tmp_path)]) == 0
    rows = table(tmp_path / "correlation.csv")
    simple = [row for row in rows if row["group"] == "simple"]
    assert [row["state"] for row in simple] == ["x", "c", "s", "y"] or len(simple) == 0
    printed = capsys.readouterr().out
    counted = sum(int(row["images"]) for row in rows if row["state"] == "c")
    assert printed.startswith("15 images, ")
    assert counted + int(printed.rpartition(", ")[2].split()[0]) == 15
    for row in rows:
        assert 0 <= float(row["overlap"]) <= 1
        assert 0 < float(row["coverage"]) < 1
    assert "correlation.png" in pictures(tmp_path)


def test_repair(image_folder, masks, trained, tmp_path, capsys):
    checkpoint = trained / "model_best.safetensors"
    flags = ["repair", "--checkpoint", str(checkpoint), "--data-dir", str(image_folder), "--val-split", "val",
             "--masks", str(masks), "--layers", "stages.2.blocks.1.mixer", "--epochs", "1", "--batch-size", "24",
             "--workers", "0", "--device", "cpu", "--confident", "0.3", "--output", str(tmp_path), "--experiment", "r"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "external loss of the trained model" in printed
    assert "internal loss of the trained model" in printed
    before, (after, description) = load_weights(checkpoint)[0], load_weights(tmp_path / "r" / "repaired.safetensors")
    assert description.label_names == ["one", "three", "two"]
    assert any(not torch.equal(before[name], after[name]) for name in before)
    one = str(sorted((image_folder / "val" / "one").iterdir())[0])
    with contextlib.redirect_stdout(io.StringIO()):
        assert predict.main([one, "--checkpoint", str(tmp_path / "r" / "repaired.safetensors"), "--device", "cpu"]) == 0
    assert main(flags) == 2     # the run is there


@pytest.mark.parametrize(("command", "message"), [
    (["attention", "IMAGE", "--model", "test_mlla"], "MLLA runs no scans, which this looks at: it has no states"),
    (["decay", "IMAGE", "--model", "test_vssd"], "VSSD runs no scans, which this looks at: it has no states"),
    (["attention", "IMAGE", "--model", "test_vmamba", "--pixel", "5", "200"],
     "--pixel 5 200 is not in the image, which the model takes as 160x160"),
    (["attention", "IMAGE", "--model", "test_vmamba", "--class-token"],
     "stages.0.blocks.0.mixer scans no class token: leave --class-token out"),
    (["attention", "IMAGE", "--model", "test_vim", "--layers", "blocks.9"],
     "the model has no scan layer 'blocks.9'; it has blocks.0.mixer, blocks.1.mixer, blocks.2.mixer"),
    (["erf", "IMAGE", "--model", "test_vmamba", "--stages", "7"],
     "there is no stage 7: the model has 4, numbered from 0"),
    (["cam", "IMAGE", "--model", "test_vmamba", "--class", "cat"],
     "there is no class 'cat': give a name of the checkpoint or an index below 1000"),
    (["cam", "IMAGE", "--model", "test_vim", "--stages", "2"],
     "the score of a class does not depend on the map after blocks.2: the model classifies by what is not part of it; "
     "ask for an earlier stage"),
    (["erf", "nowhere.png", "--model", "test_vmamba"], "nowhere.png does not exist"),
    (["erf", "IMAGE"], "no model: give --checkpoint FILE or --model NAME --pretrained"),
    (["correlation", "--dataset", "digits", "--model", "test_mlla"],
     "MLLA runs no scans, which this looks at: it has no states"),
    (["correlation", "--dataset", "digits", "--model", "test_vmamba", "--num-classes", "10", "--states", "z"],
     "stages.3.blocks.0.mixer of VMamba has the states x, c, s, y, not z"),
    (["repair", "--data-dir", "x"], "nothing to repair: give --checkpoint FILE, or --model NAME --pretrained"),
    (["repair", "--data-dir", "x", "--checkpoint", "x", "--internal", "0"],
     "nothing to repair by: --external needs --masks, --internal needs --internal-states"),
])
def test_what_cannot_be_is_refused_in_one_line(command, message, images, tmp_path, capsys):
    output = tmp_path / "none"
    given = [images[0] if word == "IMAGE" else word for word in command]
    assert main([*given, "--device", "cpu", "--output", str(output)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"
    assert not output.exists()


def test_images_of_one_name(images, weights, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(images[0], tmp_path / name / "same.png")
    assert main(["cam", str(tmp_path / "a"), str(tmp_path / "b"), *weights, "--stages", "1",
                 "--output", str(tmp_path / "out")]) == 0
    assert pictures(tmp_path / "out") == ["same_1_cam.png", "same_2_cam.png"]
