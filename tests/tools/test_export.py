"""tools/export.py and what tools/predict.py does with its files, through their command lines."""
import json
import re
import sys

import pytest
import torch

from vmamba.export import WRITERS, load_exported
from vmamba.train import export, predict


def run(trained, output, *argv):
    return export.main(["--checkpoint", str(trained / "last.safetensors"), "--output", str(output), *argv])


def predictions(source, images, output):
    """What predict says of the images: {file: {class: probability}}, most probable first."""
    assert predict.main([*map(str, source), str(images), "--output", str(output)]) == 0
    return {entry["filename"]: {p["class"]: p["probability"] for p in entry["predictions"]}
            for entry in json.loads(output.read_text())}


@pytest.mark.parametrize(("name", "flags"), [
    ("model.onnx", []),
    ("model.pt", []),
    ("model.pt2", ["--fixed-size"]),
    pytest.param("model.aoti.pt2", ["--fixed-size"], marks=pytest.mark.slow),
])
def test_predict_says_the_same_of_the_file_as_of_the_checkpoint(name, flags, trained, image_folder, tmp_path, capsys):
    path, images = tmp_path / "new" / name, image_folder / "val"
    assert run(trained, path, *flags) == 0
    assert [file.name for file in path.parent.iterdir()] == [name]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (3 if flags else 7)    # random images and photographs at each size, and what was written
    assert lines[-1].startswith(f"wrote {path} (")
    assert lines[-1].endswith("3 classes")
    expected = predictions(["--checkpoint", trained / "last.safetensors"], images, tmp_path / "a.json")
    found = predictions(["--model", path], images, tmp_path / "b.json")
    assert found.keys() == expected.keys()
    assert len(found) == 15
    for file, classes in expected.items():
        assert list(found[file]) == list(classes)
        assert found[file] == pytest.approx(classes, abs=1e-4)


def test_the_file_says_classes_and_preprocessing(trained, tmp_path):
    assert run(trained, tmp_path / "a.pt", "--crop-pct", "0.75", "--mean", "0.4") == 0
    said = json.loads(load_exported(tmp_path / "a.pt").description)
    assert said["label_names"] == ["one", "three", "two"]
    config = said["data_config"]
    assert (config["input_size"], config["crop_pct"], config["mean"]) == ([3, 32, 32], 0.75, [0.4] * 3)


def test_a_file_that_differs_is_not_kept(trained, tmp_path, capsys, monkeypatch):
    def write_other(model, *rest):
        other = torch.nn.Sequential(model, torch.nn.Softmax(-1))
        original(other, *rest)

    original = WRITERS[".pt"]
    monkeypatch.setitem(WRITERS, ".pt", write_other)
    (tmp_path / "a.pt").write_text("from before")
    assert run(trained, tmp_path / "a.pt") == 2
    assert re.fullmatch(r"error: \S+a\.pt is not written: it does not answer like test_vmamba: 3x3x32x32 random: "
                        r"differs by \S+, largest logit \S+\n", capsys.readouterr().err)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.pt", "from before")]


@pytest.mark.parametrize(("argv", "message"), [
    ([], "the following arguments are required: --output"),
    (["--output", "model.pth"], r"output file model\.pth must end in \.onnx, \.aoti\.pt2, \.pt2, \.pt"),
    (["--output", "FOLDER.onnx"], r"output file \S+ is a folder"),
    (["--output", "/dev/null/a.onnx"], "cannot write to output folder /dev/null"),
    (["--output", "a.onnx"], "no model: give --checkpoint FILE or --model NAME --pretrained"),
    (["--output", "a.onnx", "--checkpoint", "/none.pth"], "checkpoint /none.pth does not exist"),
    (["--output", "a.onnx", "--model", "vmamba_nano"], "vmamba_nano has no weights yet"),
    (["--output", "a.onnx", "--device", "cuda"], r"--device is for \.aoti\.pt2: ONNX is written on the CPU"),
    (["--output", "a.aoti.pt2", "--device", "tpu9"], "cannot use --device tpu9"),
    (["--output", "a.pt2", "--checkpoint", "TRAINED"],
     "the program takes images of at least 33 pixels a side, not 32: add --fixed-size"),
])
def test_bad_input(argv, message, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    places = {"FOLDER.onnx": str(tmp_path / "folder.onnx"), "TRAINED": str(trained / "last.safetensors")}
    assert export.main([places.get(item, item) for item in argv]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error
    assert [file.name for file in tmp_path.iterdir()] == ["folder.onnx"]


@pytest.mark.parametrize(("package", "output"), [
    ("onnxscript", "a.onnx"), ("onnxruntime", "a.onnx"), ("skimage.data", "a.pt")])
def test_a_missing_package_is_named(package, output, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert run(trained, tmp_path / output) == 2
    assert capsys.readouterr().err == (
        f"error: {package} is not installed; install it with: pip install 'vmamba[export]'\n")
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize(("argv", "message"), [
    (["--model", "/none.onnx"], "exported model /none.onnx does not exist"),
    (["--model", "BROKEN.onnx"], r"cannot read ONNX \S+: .+"),
    (["--model", "BROKEN.pt"], r"cannot read TorchScript \S+: .+"),
    (["--model", "BROKEN.pt2"], r"cannot read torch.export archive \S+: .+"),
    (["--model", "FOREIGN.pt"], r"\S+ does not say what it classifies: it was not written by tools/export\.py"),
    (["--model", "FOREIGN.pt", "--checkpoint", "a.pth"],
     r"--checkpoint does not go with the exported model \S+: give it when exporting"),
    (["--model", "FOREIGN.pt", "--img-size", "64"], "--img-size does not go with the exported model"),
])
def test_predict_refuses(argv, message, image_folder, tmp_path, capsys):
    places = {}
    for form in (".onnx", ".pt", ".pt2"):
        path = tmp_path / f"broken{form}"
        path.write_bytes(b"no model")
        places[f"BROKEN{form}"] = str(path)
    torch.jit.script(torch.nn.Flatten()).save(tmp_path / "foreign.pt")
    places["FOREIGN.pt"] = str(tmp_path / "foreign.pt")
    assert predict.main([str(image_folder / "val"), *[places.get(item, item) for item in argv]]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: {message}.*\n", error), error
