"""docs/training.md names options of its two tools, every recipe, and the files of a run."""

import re
from pathlib import Path

from vmamba.train import validate
from vmamba.train.arguments import train_parser
from vmamba.train.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
ELSEWHERE = {"--kills", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--num-workers", "--help",
             "--loader"}


def test_options_exist():
    known = {flag for parser in (train_parser(), validate._parser()) for flag in parser._option_string_actions}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", PAGE)) - known - ELSEWHERE == set()


def test_every_recipe_is_in_the_table():
    table = PAGE.partition("| file in `configs/classification`")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+\.yaml)`", table)) == {
        path.name for path in (ROOT / "configs" / "classification").glob("*.yaml")}


def test_files_of_a_run():
    table = PAGE.partition("## What a run leaves behind")[2].partition("\n## ")[0]
    names = {file.name for file in RunDirectory("x").files} - {"resume_damaged.pt", "last_ema.safetensors",
                                                              "model_best_ema.safetensors"}
    assert names <= set(re.findall(r"`([\w.]+)`", table))
