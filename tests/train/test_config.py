"""YAML files: the same keys and the same checks as the command line; the shipped recipes."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import list_optimizers

from vmamba.errors import UserError
from vmamba.train import config
from vmamba.train.arguments import parse_train_arguments, train_parser
from vmamba.train.build import _create_optimisation
from vmamba.train.config import dump_config, load_config
from vmamba.train.model import build_classifier, model_arguments
from vmamba.train.tasks import freeze_stages

RECIPES = Path(__file__).resolve().parents[2] / "configs" / "classification"


def load(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load_config(path, train_parser())


def test_values_are_converted_as_on_the_command_line(tmp_path):
    text = "lr: 1e-3\nbatch-size: 8\nmodel_kwargs: {img_size: 64}\nscale: [0.5, 1]\nmean: 0.5\namp: true"
    values = load(tmp_path, text)
    assert values == {"lr": 1e-3, "batch_size": 8, "model_kwargs": {"img_size": 64}, "scale": [0.5, 1.0],
                      "mean": [0.5], "amp": True}


@pytest.mark.parametrize(("text", "message"), [
    ("epoch: 3", r"unknown key 'epoch'; near names: epochs"),
    ("config: x.yaml", "unknown key 'config'"),
    ("epochs: many", "epochs: needs a value of type int, not 'many'"),
    ("epochs: 1.5", "epochs: needs a whole number, not 1.5"),
    ("epochs: [1, 2]", "epochs: needs a single int"),
    ("epochs: true", "epochs: needs a single int"),
    ("amp: 1", "amp: needs true or false"),
    ("scale: [0.1]", "scale: needs 2 values, not 1"),
    ("sched: cosin", "sched: must be one of cosine"),
    ("model_kwargs: 3", "model_kwargs: needs a mapping"),
    ("- a", "must be a mapping"),
    ("a: [", "not valid YAML"),
    ("x: !!python/object/apply:os.getcwd []", "not valid YAML"),
])
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, text)


def test_base_is_what_a_file_changes(tmp_path):
    (tmp_path / "a.yaml").write_text("model: m\nepochs: 5\nlr: 1e-3\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nepochs: 7\n")
    assert load(tmp_path, "base: b.yaml\nlr: 2e-3\n") == {"model": "m", "epochs": 7, "lr": 2e-3}
    with pytest.raises(UserError, match=r"config \S+c.yaml is its own base"):
        load(tmp_path, "base: c.yaml")
    with pytest.raises(UserError, match=r"cannot read config \S+none.yaml"):
        load(tmp_path, "base: none.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read config .*none.yaml: No such file"):
        load_config(tmp_path / "none.yaml", train_parser())


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: digits\nmodel: a\nepochs: 7\nseed: 5\n")
    args = parse_train_arguments(["-c", str(tmp_path / "c.yaml"), "--epochs", "9"])
    assert (args.model, args.epochs, args.seed, args.sched) == ("a", 9, 5, "cosine")


def test_dump_reads_back(tmp_path):
    args = parse_train_arguments(["--dataset", "digits", "--model", "a", "--mean", ".1", "--model-kwargs", "x=1"])
    options = {key: value for key, value in vars(args).items() if key not in config._NOT_OPTIONS}
    assert load(tmp_path, dump_config(vars(args))) == options


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(recipe):
    args = parse_train_arguments(["-c", str(recipe), "--data-dir", "x"])
    assert timm.is_model(args.model)
    assert args.epochs
    assert args.opt in list_optimizers()
    assert not args.kd_model or timm.is_model(args.kd_model.partition(".")[0])


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_fit_their_models(recipe):
    """On a device without memory: the model takes its arguments, the optimiser and the schedule theirs."""
    args = parse_train_arguments(["-c", str(recipe), "--data-dir", "x"])
    args.world_size, args.device = 1, "cpu"
    model = build_classifier(args.model, device="meta", **model_arguments(args))
    if args.frozen_stages is not None or args.linear_probe:
        freeze_stages(model, None if args.linear_probe else args.frozen_stages)
    if args.drop_path:      # the model knows the option, and does not take it for one of its many others
        rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
        assert max(rates) == pytest.approx(args.drop_path)
    optimisation, epochs = _create_optimisation(args, model, 100)
    assert epochs == args.epochs + args.warmup_epochs * args.warmup_prefix + args.cooldown_epochs
    assert (optimisation.scaler is None) == (not args.amp)
    assert optimisation.lr == pytest.approx(args.warmup_lr if args.warmup_epochs else args.lr)


@pytest.mark.parametrize(("model", "weight", "optimiser", "batch", "rate"), [
    ("mlla_tiny", 1.0, "adamw", 1024, 1e-3), ("vssd_tiny", 1.0, "adamw", 1024, 1e-3),
    ("spatial_mamba_tiny", 1.0, "adamw", 1024, 1e-3), ("a2mamba_tiny", 1.0, "adamw", 2048, 2e-3),
    ("mambavision_tiny", 0.5, "lamb", 1024, 5e-3), ("efficientvim_m1", 1.0, "adamw", 2048, 2e-3),
])
def test_recipes_of_self_distillation(model, weight, optimiser, batch, rate):
    """What is published of each: its weight, the epoch it begins with, and the rate of 8 GPUs."""
    args = parse_train_arguments(["-c", str(RECIPES / f"{model}_in1k.yaml"), "--data-dir", "x"])
    args.world_size, args.device = 8, "cpu"
    assert (args.model, args.mesa, args.opt, 8 * args.batch_size) == (model, weight, optimiser, batch)
    assert args.model_ema
    assert args.mesa_start == 0.25
    _create_optimisation(args, torch.nn.Linear(1, 1), 100)
    assert args.lr == pytest.approx(rate)


def test_every_published_recipe_of_vmamba():
    rates = {"vmamba_tiny_s1l8": 0.2, "vmamba_small_s2l15": 0.3, "vmamba_base_s2l15": 0.6}
    for model, rate in rates.items():
        args = parse_train_arguments(["-c", str(RECIPES / f"{model}_in1k.yaml"), "--data-dir", "x"])
        assert (args.model, args.drop_path, args.lr_base, args.lr_base_size) == (model, rate, 1e-3, 1024)
        assert (args.epochs + args.warmup_epochs, args.min_lr, args.clip_grad, args.mixup) == (300, 1e-5, 5.0, 0.8)


def test_no_arguments_means_digits():
    args = parse_train_arguments([], RECIPES)
    assert (args.dataset, args.model, args.hflip) == ("digits", "vmamba_nano", 0.0)


def test_a_config_without_data_needs_data(tmp_path):
    (tmp_path / "c.yaml").write_text("model: a")
    with pytest.raises(UserError, match="no dataset"):
        parse_train_arguments(["-c", str(tmp_path / "c.yaml")], RECIPES)
