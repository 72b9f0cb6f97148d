"""YAML files: the same keys and the same checks as the command line; the shipped recipes."""

from pathlib import Path

import pytest
import timm
from timm.optim import list_optimizers

from vmamba.errors import UserError
from vmamba.train import config
from vmamba.train.arguments import parse_train_arguments, train_parser
from vmamba.train.config import dump_config, load_config

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
