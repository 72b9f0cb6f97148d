"""tools/train.py through its command line: what a run leaves behind, and resuming; bad input is tested elsewhere."""

import csv
import json
import os
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
