"""Bad input of tools/train.py: one clear line, exit code 2, and nothing is written."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from vmamba.train import fit
from vmamba.train.checkpoint import Description, save_weights


def empty(folder):
    (folder / "val" / "four").mkdir()


def no_split(folder):
    for path in sorted((folder / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "val").rmdir()


def other_class(folder):
    (folder / "val" / "two").rename(folder / "val" / "tow")


BAD = {
    # name: (what to do to the data, more flags, what the line says)
    "model": (None, ["--model", "vmamba_tinny"], r"unknown model 'vmamba_tinny'; near names: .*vmamba_tiny"),
    "model-argument": (None, ["--model-kwargs", "depth=3"], r"cannot build test_vmamba: .*depth"),
    "weights-as-argument": (None, ["--model-kwargs", "cache_dir=/x"], r"--model-kwargs cache_dir is about weights"),
    "fixed-size": (None, ["--model", "test_vit", "--img-size", "100"], r"takes images of 160x160, not 100x100"),
    "image-size": (None, ["--model", "resnet18", "--input-size", "3", "0", "0"], r"size must be at least 1, not 0"),
    "img-size": (None, ["--img-size", "0"], r"--img-size must be at least 1"),
    "folder": (None, ["--data-dir", "/nonexistent"], r"data folder /nonexistent does not exist"),
    "empty-class": (empty, [], r"class folder .*four .*known classes"),
    "no-split": (no_split, [], r"has no folders for both splits"),
    "other-class": (other_class, [], r"class folder .*tow is not among the 3 known classes; near names: two"),
    "num-classes": (None, ["--num-classes", "2"], r"--num-classes 2 is too small: the data has 3 classes"),
    "batch-size": (None, ["-b", "64"], r"fewer than one batch of 64"),
    "odd-mixup": (None, ["-b", "15", "--mixup", "1"], r"must be even, not 15"),
    "dataset": (None, ["--dataset", "digit"], r"unknown dataset 'digit': .*near names: digits"),
    "output": (None, ["--output", "/dev/null/x"], r"cannot write to output folder /dev/null/x/run"),
    "experiment": (None, ["--experiment", "../x"], r"--experiment is a folder name"),
    "config": (None, ["-c", "/nonexistent.yaml"], r"cannot read config /nonexistent.yaml"),
    "flag": (None, ["--epoch", "3"], r"unrecognized arguments: --epoch 3"),
    "value": (None, ["--epochs", "x"], r"argument --epochs: invalid int value: 'x'"),
    "optimiser": (None, ["--opt", "adamv"], r"cannot create optimiser adamv: .*near names: adam"),
    "optimiser-argument": (None, ["--opt-kwargs", "beta=3"], r"cannot create optimiser adamw"),
    "augmentation": (None, ["--aa", "rand-m9-q3"], r"cannot build the training loader"),
    "aug-config": (None, ["--aug", "albumentations"], r"--aug albumentations needs --aug-config FILE"),
    "device": (None, ["--device", "gpu"], r"cannot use --device gpu"),
    "probability": (None, ["--drop-path", "1.5"], r"--drop-path must lie between 0 and 1"),
    "initial-checkpoint": (None, ["--initial-checkpoint", "/nonexistent.pth"], r"checkpoint /nonexistent.pth does not"),
    "resume": (None, ["--resume", "/nonexistent"], r"run directory /nonexistent does not exist"),
    "base": (None, ["-c", "BAD/base.yaml"], r"cannot read config .*none.yaml"),
    "python-in-yaml": (None, ["-c", "BAD/python.yaml"], r"python.yaml is not valid YAML"),
    "yaml-value": (None, ["-c", "BAD/value.yaml"], r"value.yaml: epochs: needs a value of type int, not 'many'"),
    "pickle": (None, ["--initial-checkpoint", "BAD/pickle.pth"], r"is damaged or holds pickled objects"),
    "half-a-checkpoint": (None, ["--initial-checkpoint", "BAD/half.safetensors"], r"cannot read checkpoint \S+half"),
    "two-weights": (None, ["--pretrained", "--initial-checkpoint", "x"], r"two sources of weights"),
    "frozen-stages": (None, ["--frozen-stages", "7"], r"--frozen-stages 7 is too many: the model has 4"),
    "linear-probe": (None, ["--linear-probe", "--frozen-stages", "1"], r"--linear-probe freezes all stages already"),
    "mesa": (None, ["--mesa", "1"], r"--mesa imitates the averaged weights: it needs --model-ema"),
    "teacher": (None, ["--kd-model", "resnet1"], r"unknown model 'resnet1'; near names: "),
    "temperature": (None, ["--kd-temperature", "0"], r"--kd-temperature must be above 0"),
    "class-map": (None, ["--class-map", "/nonexistent.txt"], r"cannot read --class-map /nonexistent.txt: No such file"),
    "class-map-pickle": (None, ["--class-map", "BAD/map.pkl"], r"map.pkl must be a text file with one class name"),
    "class-map-twice": (None, ["--class-map", "BAD/twice.txt"], r"twice.txt has class one more than once"),
    "class-map-empty": (None, ["--class-map", "BAD/empty.txt"], r"empty.txt has an empty line"),
    "class-map-binary": (None, ["--class-map", "BAD/binary.txt"], r"cannot read --class-map \S+binary.txt: .*utf-8"),
    "class-map-others": (None, ["--class-map", "BAD/others.txt"], r"Found 0 images|holds no images|known classes"),
    "class-map-bundled": (None, ["--dataset", "digits", "--class-map", "BAD/twice.txt"], r"digits has its classes"),
    "cache-kind": (None, ["--dataset", "digits", "--data-cache", "OUT/cache"], r"--data-cache is for image folders"),
    "cache-folder": (None, ["--data-cache", "/dev/null/x"], r"cannot write to output folder /dev/null/x"),
    "aug-list": (None, ["--aug", "torchvision", "--aug-config", "BAD/transforms.yaml"],
                 r"--aug-config: torchvision \S+ has no transform 'RandomFlip'; near names: "),
    "fsdp": (None, ["--fsdp"], r"start the tool with torchrun"),
    "fsdp-clipping": (None, ["--fsdp", "--clip-mode", "agc"], r"--clip-mode agc needs whole parameters"),
    "other-model's-weights": (None, ["--initial-checkpoint", "BAD/other.safetensors"], r"weights of \S+ do not fit"),
    "weights-of-nothing": (None, ["--initial-checkpoint", "BAD/list.pth"], r"list.pth holds no weights"),
    "changed-weights": (None, ["--initial-checkpoint", "BAD/changed.safetensors"], r"its SHA-256 is not the one"),
    "folder-for-weights": (None, ["--initial-checkpoint", "BAD"], r"is a folder: give a file in it"),
    "file-for-folder": (None, ["--data-dir", "BAD/base.yaml"], r"cannot open dataset|is a file"),
    "own-base": (None, ["-c", "BAD/own_base.yaml"], r"own_base.yaml is its own base"),
    "list-for-config": (None, ["-c", "BAD/transforms.yaml"], r"must be a mapping from option names to values"),
    "workers": (None, ["--workers", "-1"], r"--workers must not be negative, not -1"),
    "auto-resume": (None, ["--auto-resume", "--overwrite"], r"--auto-resume needs --experiment NAME"),
    "recovery": (None, ["--recovery-interval", "-1"], r"--recovery-interval must not be negative"),
    "mean": (None, ["--mean", "0.1", "0.2"], r"--mean and --std need one value, or one for each of the 3 channels"),
}


def bad_files(folder):
    """Writes files that must not be taken for good ones."""
    folder.mkdir()
    (folder / "base.yaml").write_text("base: none.yaml\n")
    (folder / "python.yaml").write_text("model: !!python/object/apply:os.system ['touch pwned']\n")
    (folder / "value.yaml").write_text("epochs: many\n")
    (folder / "pickle.pth").write_bytes(pickle.dumps({"state_dict": Path("x")}, protocol=2))
    (folder / "half.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (folder / "own_base.yaml").write_text("base: own_base.yaml\n")
    (folder / "transforms.yaml").write_text("- {type: RandomFlip}\n")
    (folder / "map.pkl").write_bytes(pickle.dumps({"one": 0, "two": 1, "three": 2}))
    (folder / "twice.txt").write_text("one\ntwo\none\n")
    (folder / "empty.txt").write_text("one\n\ntwo\n")
    (folder / "others.txt").write_text("ant\nbee\n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    torch.save([1, 2], folder / "list.pth")
    weights = {"a": torch.zeros(3)}
    save_weights(folder / "other.safetensors", weights, Description("m", 3))
    content = (folder / "other.safetensors").read_bytes()
    (folder / "changed.safetensors").write_bytes(content[:-1] + b"\1")


def test_bad_inputs_are_thirty_or_more():
    assert len(BAD) >= 30


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, own_folder, small_flags, tmp_path, capsys):
    change, flags, message = BAD[case]
    bad_files(tmp_path / "bad")
    flags = [flag.replace("BAD", str(tmp_path / "bad")).replace("OUT", str(tmp_path / "out")) for flag in flags]
    if change:
        change(own_folder)
    before = sorted(tmp_path.rglob("*"))
    assert fit.main(small_flags(own_folder, tmp_path / "out", *flags)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_unknown_key_in_config(own_folder, small_flags, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("warmup_epoch: 3\n")
    assert fit.main(small_flags(own_folder, tmp_path / "out", "-c", str(tmp_path / "c.yaml"))) == 2
    assert re.fullmatch(r"error: config \S+: unknown key 'warmup_epoch'; near names: warmup_epochs.*\n",
                        capsys.readouterr().err)


def test_run_is_not_overwritten(trained, image_folder, small_flags, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    assert fit.main(small_flags(image_folder, trained.parent)) == 2
    assert re.fullmatch(r"error: \S+ already holds a run: continue it with --resume .* --overwrite.*\n",
                        capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in trained.iterdir()}


@pytest.mark.parametrize(("flags", "message"), [
    (["--model", "test_convnext"], "its architecture is test_vmamba, not test_convnext"),
    (["--num-classes", "5"], "its num classes is 3, not 5"),
    (["--config", "x.yaml"], "leave --config out"),
    (["--overwrite"], "give one of them"),
    (["--opt", "sgd", "--layer-decay", "0.5"], "cannot resume .* with these options"),
])
def test_bad_resume(trained, flags, message, capsys):
    before = {path: path.read_bytes() for path in trained.iterdir()}
    assert fit.main(["--resume", str(trained), *flags]) == 2
    assert re.fullmatch(rf"error: .*(?:{message}).*\n", capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in trained.iterdir()}
