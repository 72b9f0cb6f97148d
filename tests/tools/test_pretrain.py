"""tools/pretrain.py: what a run leaves behind, resuming, fine-tuning from it, and bad inputs."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from vmamba.errors import UserError
from vmamba.models.vmamba import VMamba
from vmamba.tasks.pretraining import train as pretraining
from vmamba.tasks.pretraining.train import pretrain_parser
from vmamba.train import fit
from vmamba.train.checkpoint import load_weights
from vmamba.train.config import load_config
from vmamba.train.logs import read_rows
from vmamba.train.loop import EpochTrainer
from vmamba.train.stop import EXIT_STOPPED

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "configs" / "pretraining"
FILES = ["args.yaml", "curves.png", "environment.json", "last.safetensors", "last_ema.safetensors",
         "model_best.safetensors", "model_best_ema.safetensors", "reconstructions.png", "resume.pt",
         "resume_previous.pt", "steps.csv", "summary.csv"]
MASKS = ("--mask-size", "8", "--mask-ratio", "0.6", "--decoder-dim", "16")
FLAGS = (*MASKS, "--model-ema", "--model-ema-decay", "0.5", "--drop-path", "0.1", "--log-interval", "1")


@pytest.fixture(scope="module")
def pretrained(image_folder, small_flags, tmp_path_factory):
    """An uninterrupted run: 2 epochs of 3 steps."""
    output = tmp_path_factory.mktemp("pretrained")
    assert pretraining.main(small_flags(image_folder, output, *FLAGS)) == 0
    return output / "run"


def test_run_directory(pretrained):
    assert sorted(path.name for path in pretrained.iterdir()) == FILES
    rows = read_rows(pretrained / "summary.csv")
    assert list(rows[0]) == ["epoch", "train_loss", "train_images_per_second", "eval_loss", "eval_ema_loss", "lr"]
    assert len(rows) == 2
    assert all(0.1 < float(row[key]) < 3 for row in rows for key in ("train_loss", "eval_loss", "eval_ema_loss"))
    with Image.open(pretrained / "reconstructions.png") as image:
        image.load()
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors(256)) > 100
    assert "tools/pretrain.py" in (pretrained / "environment.json").read_text()


def test_the_checkpoint_is_the_encoder_without_a_head(pretrained):
    weights, description = load_weights(pretrained / "last.safetensors")
    model = timm.create_model("test_vmamba", num_classes=0)
    model.load_state_dict(weights)      # strict: exactly the encoder's
    assert (description.architecture, description.num_classes, description.label_names) == ("test_vmamba", 0, [])
    assert description.data_config["input_size"] == [3, 32, 32]
    assert description.metrics.keys() == {"loss"}
    averaged = load_file(pretrained / "last_ema.safetensors")
    assert averaged.keys() == weights.keys()
    assert not all(torch.equal(weights[key], averaged[key]) for key in weights)


def test_fine_tuning_starts_from_it(pretrained, image_folder, small_flags, tmp_path, monkeypatch):
    """Plain tools/train.py, without a flag about the head; the weights before the first step are the encoder's."""
    seen = []

    def look(self, *args):
        seen.append({key: value.clone() for key, value in self.task.get_checkpoint_state()["state_dict"].items()})
        return step(self, *args)

    step = EpochTrainer._step
    monkeypatch.setattr(EpochTrainer, "_step", look)
    path = pretrained / "last.safetensors"
    flags = small_flags(image_folder, tmp_path, "--epochs", "1", "--initial-checkpoint", str(path))
    assert fit.main(flags) == 0
    weights = load_file(path)
    assert all(torch.equal(seen[0][key], weights[key]) for key in weights)
    assert seen[0].keys() - weights.keys() == {"head.fc.weight", "head.fc.bias"}
    assert seen[0]["head.fc.weight"].shape[0] == 3
    _, description = load_weights(tmp_path / "run" / "last.safetensors")
    assert description.num_classes == 3


def test_timm_loads_it(pretrained):
    """As a file of weights of its own, also for feature maps."""
    overlay = {"file": str(pretrained / "last.safetensors"), "num_classes": 0}
    weights = load_file(pretrained / "last.safetensors")
    model = timm.create_model("test_vmamba", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    assert isinstance(model, VMamba)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    maps = timm.create_model("test_vmamba", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert all(torch.equal(value, weights[key.removeprefix("model.")]) for key, value in maps.state_dict().items())


def test_pre_training_goes_on_from_an_encoder_or_a_classifier(pretrained, trained, image_folder, small_flags, tmp_path):
    for number, path in enumerate((pretrained / "last.safetensors", trained / "model_best.safetensors")):
        flags = small_flags(image_folder, tmp_path / str(number), *MASKS, "--epochs", "1", "--lr", "0", "--warmup-lr",
                            "0", "--initial-checkpoint", str(path))
        assert pretraining.main(flags) == 0
        before, after = load_file(path), load_file(tmp_path / str(number) / "run" / "last.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in after)


def assert_equal_runs(left, right):
    for name in ("last", "last_ema", "model_best", "model_best_ema"):
        a, b = load_file(left / f"{name}.safetensors"), load_file(right / f"{name}.safetensors")
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert (left / "steps.csv").read_text() == (right / "steps.csv").read_text()
    assert (left / "reconstructions.png").read_bytes() == (right / "reconstructions.png").read_bytes()
    a, b = (torch.load(run / "resume.pt", weights_only=True) for run in (left, right))
    for key in ("task_state", "task_state_ema"):
        for part in ("fill", "decoder"):
            assert all(torch.equal(a[key][part][name], b[key][part][name]) for name in a[key][part])


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
        pretrained, image_folder, small_flags, tmp_path, monkeypatch, capsys, step):
    """Stopped in the first and in the second epoch: weights, averages, decoder, masks, losses and pictures."""
    original, numbers = EpochTrainer._step, count(1)

    def patched(self, *args):
        if next(numbers) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EpochTrainer, "_step", patched)
        assert pretraining.main(small_flags(image_folder, tmp_path, *FLAGS)) == EXIT_STOPPED
    command = f"python tools/pretrain.py --resume {tmp_path}/run"
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"continue with: {command}")
    torch.manual_seed(0)    # whatever else happened in between
    assert pretraining.main(command.split()[2:]) == 0
    assert_equal_runs(pretrained, tmp_path / "run")


def test_masks_of_the_validation_split_are_always_the_same(image_folder, small_flags, tmp_path):
    """Without any learning, the loss of each epoch is the same to the last bit."""
    flags = small_flags(image_folder, tmp_path, *MASKS, "--lr", "0", "--warmup-lr", "0", "--weight-decay", "0")
    assert pretraining.main(flags) == 0
    first, second = read_rows(tmp_path / "run" / "summary.csv")
    assert first["eval_loss"] == second["eval_loss"]
    assert first["train_loss"] != second["train_loss"]      # others are masked


def test_images_without_classes_or_splits(own_folder, small_flags, tmp_path, capsys):
    """Images that lie in one folder, whatever it is called; and they may be kept decoded."""
    pile = tmp_path / "pile"
    pile.mkdir()
    for number, path in enumerate(sorted((own_folder / "train").rglob("*.png"))):
        shutil.copy(path, pile / f"{number}.png")
    flags = small_flags(pile, tmp_path, *MASKS, "--epochs", "1", "--data-cache", str(tmp_path / "cache"), "--model",
                        "test_vim", "--model-kwargs", "patch_size=8", "stride=8", "img_size=32")
    assert pretraining.main(flags) == 0
    assert sum(path.is_file() for path in (tmp_path / "cache").rglob("*")) == 48
    output = capsys.readouterr()
    assert "48 training and 48 validation images, input 3x32x32" in output.out
    assert output.err == f"warning: {pile} has no folder validation/: the validation loss is of training images\n"
    assert load_weights(tmp_path / "run" / "last.safetensors")[1].model_args == {
        "patch_size": 8, "stride": 8, "img_size": 32}


def test_script_with_a_recipe_prints_commands_that_work(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pretrain.py"), "--dataset", "digits", "--model", "test_vmamba",
         "--epochs", "1", "--warmup-epochs", "0", "--output", str(tmp_path), "--train-split", "train[:10%]",
         "--val-split", "validation[:20%]"],
        cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    commands = {key: shlex.split(value) for key, _, value in (
        line.partition(":") for line in done.stdout.splitlines()[-2:])}
    tune = commands["fine-tune"]
    assert tune[:2] == ["python", "tools/train.py"]
    more = ["--dataset", "digits", "--train-split", "train[:10%]", "--val-split", "validation[:20%]", "--epochs", "1",
            "--warmup-epochs", "0", "--output", str(tmp_path), "--experiment", "tuned"]
    assert fit.main([*tune[2:-1], *more], recipes=ROOT / "configs" / "classification") == 0
    assert commands["resume"][:2] == ["python", "tools/pretrain.py"]
    assert pretraining.main([*commands["resume"][2:], "--stop-epoch", "1"]) == 0


@pytest.mark.parametrize(("flags", "message"), [
    (["--mask-ratio", "1"], "--mask-ratio must lie between 0 and 1, not 1.0"),
    (["--mask-size", "0"], "--mask-size must be at least 1, not 0"),
    (["--mask-size", "12"], "cannot pre-train test_vmamba: patches of 12 pixels do not fit maps at strides 4, 8, 16"),
    (["--mask-size", "32"], "cannot pre-train test_vmamba: the grid of patches is 1 x 1"),
    (["--mask-token", "zero"], "invalid choice: 'zero'"),
    (["--img-size", "40", "--mask-size", "8"],
     "cannot pre-train test_vmamba: images of 40x40 do not divide into cells of 32 pixels"),
    (["--model", "resnet18"], "cannot pre-train resnet18: ResNet cannot be masked"),
    (["--model", "test_vim", "--model-kwargs", "patch_size=16", "stride=8"],
     "cannot pre-train test_vim: a mask of 4 x 4 patches has no counterpart on a map of 3 x 3"),
    (["--model", "test_vmaba"], "unknown model 'test_vmaba'; near names: test_vmamba"),
    (["--mixup", "0.2"], "--mixup is for classifiers: it has no meaning in pre-training"),
    (["--kd-model", "resnet18"], "--kd-model is for classifiers"),
    (["--linear-probe"], "--linear-probe is for classifiers"),
    (["--data-dir", "/nonexistent"], "data folder /nonexistent does not exist"),
    (["--resume", "/nonexistent"], "run directory /nonexistent does not exist"),
])
def test_bad_inputs(image_folder, small_flags, tmp_path, capsys, flags, message):
    assert pretraining.main(small_flags(image_folder, tmp_path, *flags)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", error)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_continued_with_another_decoder(pretrained, tmp_path, capsys):
    run = shutil.copytree(pretrained, tmp_path / "run")
    assert pretraining.main(["--resume", str(run), "--decoder-dim", "24", "--epochs", "3"]) == 2
    assert f"cannot resume {run} with these options" in capsys.readouterr().err
    assert fit.main(["--resume", str(run)]) == 2
    assert "unknown key" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes(path):
    """Their options exist, and their patches fit their model and images."""
    values = load_config(path, pretrain_parser())
    args = pretrain_parser().parse_args([])
    vars(args).update(values)
    pretraining._check(args)
    size = args.img_size
    model = timm.create_model(args.model, num_classes=0, device="meta", **(args.model_kwargs or {}))
    masked = pretraining.MaskedImageModel(model, args.mask_size, args.mask_token, args.decoder_dim, args.decoder_depth)
    rows, columns = masked.grid(torch.empty(1, 3, size, size, device="meta"))
    assert rows * columns >= 4


def test_options_of_classifiers_are_read_but_not_shown():
    """A config of a classifier may be the base of one of pre-training."""
    help_text = pretrain_parser().format_help()
    for option in ("--smoothing", "--mixup", "--kd-model", "--linear-probe"):
        assert f"{option} " not in help_text
    for option in ("--mask-ratio", "--mask-size", "--mask-token", "--resume", "--batch-size", "--lr"):
        assert f"{option} " in help_text
    args = pretrain_parser().parse_args(["--smoothing", "0.3"])
    pretraining._check(args)
    args.cutmix = 1.0
    with pytest.raises(UserError, match="--cutmix"):
        pretraining._check(args)


@pytest.mark.slow
def test_two_processes(image_folder, small_flags, tmp_path):
    """All weights get gradients in every process; sharded, saved and resumed, they learn the same as unsharded."""
    def run(name, *more):
        flags = small_flags(image_folder, tmp_path / name, *FLAGS, "-b", "8", *more)
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             str(ROOT / "tools" / "pretrain.py"), *flags], capture_output=True, text=True, timeout=500,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("whole").count("epoch 1/2") == 1
    run("split", "--fsdp", "--stop-epoch", "1")
    output = run("split", "--fsdp", "--resume", str(tmp_path / "split" / "run"), "--stop-epoch", "2")
    assert "resumed after epoch 1" in output
    whole, split = tmp_path / "whole" / "run", tmp_path / "split" / "run"
    left, right = ([float(row["loss"]) for row in read_rows(path / "steps.csv")] for path in (whole, split))
    assert len(left) == 6
    assert right == pytest.approx(left, rel=1e-5)
    left, right = (read_rows(path / "summary.csv") for path in (whole, split))
    for a, b in zip(left, right, strict=True):
        for key in ("eval_loss", "eval_ema_loss"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-5)
    for name in ("last", "last_ema"):
        weights, others = load_file(whole / f"{name}.safetensors"), load_file(split / f"{name}.safetensors")
        assert weights.keys() == others.keys()
        for key in weights:
            torch.testing.assert_close(others[key], weights[key], rtol=1e-4, atol=1e-6)
    assert (split / "reconstructions.png").is_file()
