"""tools/train.py through its command line: what a run leaves behind, resuming, and every kind of bad input."""

import csv
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from vmamba.train import fit, validate
from vmamba.train.checkpoint import Description, save_weights

ROOT = Path(__file__).resolve().parents[2]
FILES = ["args.yaml", "classes.csv", "confusion.csv", "confusion.png", "curves.png", "environment.json",
         "last.safetensors", "last_ema.safetensors", "mistakes.csv", "mistakes.png", "model_best.safetensors",
         "model_best_ema.safetensors", "resume.pt", "resume_previous.pt", "steps.csv", "summary.csv"]


def script(*argv, cwd=ROOT):
    """Runs tools/train.py in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(ROOT / "tools" / "train.py"), *map(str, argv)], cwd=cwd,
                          env=environment, capture_output=True, text=True)


def rows(run):
    with open(run / "summary.csv", newline="") as file:
        return [{key: value for key, value in row.items() if "per_second" not in key} for row in csv.DictReader(file)]


def test_run_directory(trained):
    assert sorted(path.name for path in trained.iterdir()) == FILES
    assert [row["epoch"] for row in rows(trained)] == ["0", "1"]
    assert {"train_loss", "eval_top1", "eval_top5", "eval_loss", "eval_ema_top1", "lr"} <= rows(trained)[0].keys()
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        with Image.open(trained / name) as image:
            image.load()
            assert min(image.size) > 300
    with open(trained / "confusion.csv", newline="") as file:
        header, *table = csv.reader(file)
    assert header == ["true \\ predicted", "one", "three", "two"]
    assert [sum(map(int, row[1:])) for row in table] == [5, 5, 5]


def test_checkpoint_describes_itself(trained):
    with safe_open(trained / "model_best.safetensors", framework="pt") as file:
        text = file.metadata()["vmamba"]
    assert '"architecture": "test_vmamba"' in text
    assert '"label_names": ["one", "three", "two"]' in text
    assert '"input_size": [3, 32, 32]' in text
    assert str(Path.home()) not in text


def test_script_on_bundled_digits_prints_commands_that_work(tmp_path):
    done = script("--model", "test_vmamba", "--epochs", 1, "--warmup-epochs", 0, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""    # no progress bar where nobody watches
    lines = done.stdout.splitlines()
    assert re.match(r"epoch 1/1 .*top1 .*img/s", lines[4])
    commands = {key: value for key, _, value in (line.partition(":") for line in lines[-3:])}
    assert list(commands) == ["validate", "predict", "resume"]
    argv = shlex.split(commands["validate"])
    assert argv[:2] == ["python", "tools/validate.py"]
    assert validate.main(argv[2:]) == 0
    argv = shlex.split(commands["resume"])
    assert argv[:2] == ["python", "tools/train.py"]
    assert Path(argv[argv.index("--resume") + 1]).parent == tmp_path
    done = script(*argv[2:], "--stop-epoch", 1)
    assert done.returncode == 0, done.stderr
    assert "stopped after epoch 1 of 2" in done.stdout


EVERYTHING = ("--epochs", "3", "--model-ema", "--model-ema-warmup", "--mixup", "0.2", "--cutmix", "1.0",
              "--mixup-off-epoch", "2", "--reprob", "0.25", "--drop-path", "0.1", "--grad-accum-steps", "2",
              "--clip-grad", "1.0", "--layer-decay", "0.8", "--warmup-epochs", "1")


AUGMENTATION = ("--aug", "albumentations", "--aug-config",
                str(ROOT / "configs" / "augmentation" / "digits.yaml"))


@pytest.mark.parametrize("more", [
    ("--aa", "rand-m3-n1", "--workers", "0"),
    ("--aa", "rand-m3-n1", "--workers", "1"),
    (*AUGMENTATION, "--workers", "1"),
], ids=["in-process", "worker", "albumentations"])
def test_resumed_run_equals_uninterrupted_run(image_folder, small_flags, tmp_path, more, capsys):
    flags = [*EVERYTHING, *more]
    assert fit.main(small_flags(image_folder, tmp_path / "whole", *flags)) == 0
    assert fit.main(small_flags(image_folder, tmp_path / "parts", *flags, "--stop-epoch", "1")) == 0
    torch.manual_seed(0)    # whatever else happened in between
    assert fit.main(["--resume", str(tmp_path / "parts" / "run")]) == 0
    assert "resumed after epoch 1" in capsys.readouterr().out
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert rows(whole) == rows(parts)
    assert len(rows(whole)) == 3
    for name in ("last.safetensors", "last_ema.safetensors", "model_best_ema.safetensors"):
        left, right = load_file(whole / name), load_file(parts / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    assert (whole / "confusion.csv").read_text() == (parts / "confusion.csv").read_text()


def test_finished_run_trains_on_with_more_epochs(image_folder, small_flags, tmp_path, capsys):
    assert fit.main(small_flags(image_folder, tmp_path, "--epochs", "1")) == 0
    assert fit.main(["--resume", str(tmp_path / "run" / "resume.pt")]) == 0
    assert "finished after epoch 1 of 1" in capsys.readouterr().out
    assert fit.main(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 0
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["0", "1"]


def test_overwrite_replaces_the_run_and_nothing_else(image_folder, small_flags, tmp_path):
    flags = small_flags(image_folder, tmp_path, "--epochs", "1")
    assert fit.main([*flags, "--model-ema"]) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert fit.main([*flags, "--overwrite"]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    left = {"last_ema.safetensors", "model_best_ema.safetensors", "resume_previous.pt"}
    assert names == {*FILES, "notes.txt"} - left


@pytest.mark.parametrize("flags", [
    ["--amp", "--amp-dtype", "bfloat16", "--channels-last", "--grad-checkpointing"],
    ["--loss", "bce", "--mixup", "0.5", "--no-sched-on-updates", "--opt", "lamb", "--clip-grad", "0.1",
     "--clip-mode", "agc"],
    ["--in-chans", "1", "--mean", "0.3", "--std", "0.3", "--gp", "max"],
    ["--sched", "wsd", "--warmup-prefix", "--warmup-epochs", "1", "--no-aug"],
], ids=["precision", "losses", "channels", "schedule"])
def test_options_work_and_reach_the_checkpoint(image_folder, small_flags, tmp_path, flags, capsys):
    assert fit.main(small_flags(image_folder, tmp_path, "--epochs", "1", *flags)) == 0
    top1 = re.search(r"best validation top-1 ([\d.]+) %", capsys.readouterr().out).group(1)
    assert validate.main(["--checkpoint", str(tmp_path / "run" / "model_best.safetensors"), "--data-dir",
                          str(image_folder), *([flag for flag in flags[:3] if "amp" in flag or "float" in flag])]) == 0
    assert f"top1 {top1} %" in capsys.readouterr().out


def test_initial_checkpoint_starts_from_its_weights(image_folder, small_flags, trained, tmp_path):
    flags = ["--initial-checkpoint", str(trained / "last.safetensors"), "--lr", "0", "--weight-decay", "0"]
    assert fit.main(small_flags(image_folder, tmp_path, "--epochs", "1", *flags)) == 0
    left, right = load_file(trained / "last.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)


RECIPES = ROOT / "configs" / "classification"


@pytest.mark.parametrize("recipe", ["finetune", "linear_probe"])
def test_recipes_that_start_from_weights(image_folder, small_flags, trained, tmp_path, recipe):
    """From a run of three classes to a model with another head; a linear probe moves nothing but the classifier."""
    flags = ["-c", str(RECIPES / f"{recipe}.yaml"), "--no-pretrained", "--initial-checkpoint",
             str(trained / "last.safetensors"), "--reset-head", "--num-classes", "5", "--epochs", "1", "--opt", "adamw"]
    assert fit.main(small_flags(image_folder, tmp_path, *flags)) == 0
    before, after = load_file(trained / "last.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    head = {key for key in after if key.startswith("head.fc.")}
    assert after["head.fc.weight"].shape[0] == 5
    moved = {key for key in after if key not in head and not torch.equal(before[key], after[key])}
    assert bool(moved) == (recipe == "finetune")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_tar_files_train_like_folders(image_folder, small_flags, tmp_path, workers):
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "data" / f"{split}.tar", "w") as file:
            for path in sorted((image_folder / split).rglob("*.png")):
                file.add(path, path.relative_to(image_folder / split))
    assert fit.main(small_flags(image_folder, tmp_path / "folder", "--epochs", "1")) == 0
    assert fit.main(small_flags(tmp_path / "data", tmp_path / "tar", "--epochs", "1", "--workers", workers)) == 0
    assert rows(tmp_path / "folder" / "run") == rows(tmp_path / "tar" / "run")


def test_distillation_from_a_run(image_folder, small_flags, trained, tmp_path):
    flags = ["--kd-checkpoint", str(trained / "model_best.safetensors"), "--epochs", "1"]
    assert fit.main(small_flags(image_folder, tmp_path, *flags)) == 0
    assert (tmp_path / "run" / "last.safetensors").is_file()


def test_exploding_loss_leaves_the_last_good_checkpoint(image_folder, small_flags, tmp_path, capsys):
    flags = small_flags(image_folder, tmp_path, "--sched", "constant", "--opt", "sgd")
    assert fit.main([*flags, "--stop-epoch", "1", "--lr", "0"]) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert fit.main(["--resume", str(tmp_path / "run"), "--lr", "1e30"]) == 2
    assert re.search(r"error: the training loss became (nan|inf) at step 2 of 3 in epoch 2", capsys.readouterr().err)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def damage(folder):
    """Cuts the end off a training image."""
    path = sorted((folder / "train" / "two").iterdir())[3]
    path.write_bytes(path.read_bytes()[:-30])


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
    "fsdp": (None, ["--fsdp"], r"start tools/train.py with torchrun"),
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
    assert re.fullmatch(rf"error: .*{message}.*\n", error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_names_from_files_stay_inside_the_run_directory(own_folder, small_flags, tmp_path):
    """Class names are text: one that looks like a path, or like a formula, is only written into tables and figures."""
    names = {"one": "$one^", "two": "..two", "three": "=three()"}
    for split in ("train", "val"):
        for old, new in names.items():
            (own_folder / split / old).rename(own_folder / split / new)
    (tmp_path / "map.txt").write_text("\n".join(["../../escape", "/etc/escape", *names.values()]))
    assert fit.main(small_flags(own_folder, tmp_path / "out", "--epochs", "1", "--class-map", str(tmp_path / "map.txt"),
                                "--checkpoint-interval", "1")) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"data", "map.txt", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run"}
    with open(tmp_path / "out" / "run" / "classes.csv", newline="") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"../../escape", "/etc/escape", *names.values()}


def test_print_config_writes_what_it_reads(image_folder, small_flags, tmp_path, capsys):
    assert fit.main([*small_flags(image_folder, tmp_path), "--print-config"]) == 0
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.yaml").write_text(text)
    assert fit.main(["-c", str(tmp_path / "c.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == text


def test_environment_of_a_run(trained):
    (start,) = json.loads((trained / "environment.json").read_text())
    assert start["command"].startswith("python tools/train.py --model test_vmamba --data-dir ")
    assert start["versions"]["torch"] == torch.__version__
    assert {"commit", "device", "time", "processes"} <= start.keys()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_truncated_image(own_folder, small_flags, tmp_path, workers, capsys):
    damage(own_folder)
    assert fit.main(small_flags(own_folder, tmp_path / "out", "--workers", workers)) == 2
    assert re.fullmatch(r"error: cannot read image \S+/two/\d+\.png: .+\n", capsys.readouterr().err)


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
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in trained.iterdir()}


def test_script_reports_bad_input_in_one_line(tmp_path):
    done = script("--data-dir", tmp_path / "none", "--model", "test_vmamba", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: data folder {tmp_path}/none does not exist\n"
    assert list(tmp_path.iterdir()) == []


def test_mistakes_of_the_best_epoch(trained):
    with open(trained / "mistakes.csv", newline="") as file:
        table = list(csv.DictReader(file))
    with open(trained / "confusion.csv", newline="") as file:
        _, *confusion = csv.reader(file)
    wrong = sum(int(value) for number, row in enumerate(confusion) for column, value in enumerate(row[1:])
                if column != number)
    assert len(table) == min(wrong, 24)
    assert all(row["file"].startswith(row["class"] + "/") and row["label"] != row["predicted"] for row in table)
    confidences = [float(row["confidence"]) for row in table]
    assert confidences == sorted(confidences, reverse=True)


class Wandb:
    """What of Weights & Biases is used, which writes down what it is told."""

    Error = RuntimeError

    def __init__(self):
        self.told = []

    def init(self, **kwargs):
        self.told.append(("init", kwargs))
        return self

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self, exit_code):
        self.told.append(("finish", exit_code))


def test_weights_and_biases(image_folder, small_flags, tmp_path, monkeypatch):
    """Steps and epochs arrive in order, and a resumed run goes on under its number."""
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    flags = small_flags(image_folder, tmp_path, "--wandb", "mine", "--log-interval", "1")
    assert fit.main([*flags, "--stop-epoch", "1"]) == 0
    assert fit.main(["--resume", str(tmp_path / "run")]) == 0
    starts = [kwargs for kind, kwargs in wandb.told if kind == "init"]
    assert [start["project"] for start in starts] == ["mine", "mine"]
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[0]["config"]["model"] == "test_vmamba"
    assert [kind for kind, _ in wandb.told] == ["init", 1, 2, 3, 3, "finish", "init", 4, 5, 6, 6, "finish"]
    steps = [values["step/loss"] for kind, values in wandb.told if isinstance(kind, int) and "step/loss" in values]
    with open(tmp_path / "run" / "steps.csv", newline="") as file:
        assert steps == [float(row["loss"]) for row in csv.DictReader(file)]
    assert [code for kind, code in wandb.told if kind == "finish"] == [0, 0]


def test_weights_and_biases_cannot_be_used(image_folder, small_flags, tmp_path, monkeypatch, capsys):
    flags = small_flags(image_folder, tmp_path, "--wandb", "mine")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert fit.main(flags) == 2
    assert "wandb is not installed; install it with: pip install 'vmamba[wandb]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

    def refuse(**kwargs):
        raise wandb.Error("no key")

    wandb = Wandb()
    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert fit.main(flags) == 2
    assert "cannot start Weights & Biases: no key; WANDB_MODE=offline needs no account" in capsys.readouterr().err


def test_help_is_in_groups():
    done = script("--help")
    assert done.returncode == 0
    groups = re.findall(r"^(\w[\w ]+):$", done.stdout, re.MULTILINE)
    assert groups == ["options", "data", "model and input", "optimisation", "schedule",
                      "augmentation and regularisation", "distillation", "device", "run"]
    for group, flag in (("data", "--data-cache"), ("device", "--fsdp"), ("distillation", "--mesa"), ("run", "--wandb")):
        assert flag in done.stdout.partition(f"\n{group}:\n")[2].partition("\n\n")[0]
