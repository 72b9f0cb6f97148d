"""The README says nothing about models and versions that is not so; test_docs.py has its code and commands."""

import importlib
import re
import sys
from functools import cache
from pathlib import Path

import _zoo
import pytest
import run_timm_suite
import timm
from _counting import count

import vmamba

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def our_models():
    return sorted(name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("vmamba."))


@cache
def model_table():
    """Cells of the table of models by title, for each model."""
    table = README.partition("<!-- performance: zoo -->\n\n")[2].partition("\n\n")[0]
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0].strip("`"): dict(zip(titles, row, strict=True)) for row in rows}


def test_every_model_is_in_the_table():
    timms = {name for name in model_table() if not timm.model_entrypoint(name).__module__.startswith("vmamba.")}
    assert sorted(model_table().keys() - timms) == our_models()
    assert {timm.model_entrypoint(name).__module__ for name in timms} == {
        "timm.models.efficientvim", "timm.models.mambaout"}


@pytest.mark.parametrize("name", our_models())
def test_parameters_in_the_table(name):
    model = timm.create_model(name, device="meta")
    assert model_table()[name]["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"


@pytest.mark.parametrize("name", our_models())
def test_accuracy_is_the_published_one(name):
    """The table gives what the model's configuration says, and says it of every model with weights."""
    cfg = timm.get_pretrained_cfg(name)
    note = re.search(r"top-1 ([\d.]+) % \(published\)", " ".join(cfg.notes or ()) if cfg is not None else "")
    cell = model_table()[name]["ImageNet-1K top-1, published"]
    assert re.fullmatch(rf"\[{note[1]}\]\(https://\S+\)" if note else "", cell)
    assert note or cfg is None or not cfg.has_weights


@pytest.mark.parametrize("name", ["vmamba_nano", "test_vssd", "test_a2mamba", "efficientvim_m1"])
def test_multiply_adds_in_the_table(name):
    _, channels, height, width = (1, *timm.get_pretrained_cfg(name).input_size)
    macs = count(timm.create_model(name, device="meta"), 1, channels, height, width).macs
    assert model_table()[name]["multiply-adds (G)"] == f"{macs / 1e9:.2f}"


def parameters_of_tests():
    """Stems of the fixtures, among all strings, that tests of models are parametrized by."""
    for path in (ROOT / "tests" / "models").glob("test_*.py"):
        for function in vars(importlib.import_module(f"tests.models.{path.stem}")).values():
            for mark in getattr(function, "pytestmark", ()):
                for value in mark.args[1] if mark.name == "parametrize" else ():
                    values = getattr(value, "values", value)    # of a pytest.param
                    words = values if isinstance(values, tuple) else (values,)
                    yield from (Path(word).stem for word in words if isinstance(word, str))


def test_parity_is_tested():
    """Every fixture that the table speaks of is there, and a test of models reads it."""
    read = set(parameters_of_tests())
    for name, fixture in _zoo.FIXTURES.items():
        assert model_table()[name]["parity"] == "fixture"
        assert (ROOT / "tests" / "goldens" / f"{fixture}.json").is_file()
        assert fixture.rpartition("/")[2] in read, fixture
    assert {row["parity"] for row in model_table().values()} == {
        "fixture", "fixture of the family", "no public code", "no fixture", "ours", "timm's"}


def test_licence_of_the_origin_is_what_the_model_file_says():
    for name in our_models():
        doc = " ".join(sys.modules[timm.model_entrypoint(name).__module__].__doc__.split())
        licence = model_table()[name]["licence of the origin"]
        assert f"({licence}" in doc if licence else "Origin" not in doc


def test_timm_suite_count():
    expected = run_timm_suite.expected_count(list(run_timm_suite.MODELS))
    assert f"passes {expected} tests" in README
    assert all(f"`{name}`" in README for name in run_timm_suite.MODELS)


def test_version():
    assert f'version = "{vmamba.__version__}"' in (ROOT / "pyproject.toml").read_text()
