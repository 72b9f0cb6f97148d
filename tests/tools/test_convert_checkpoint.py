"""tools/convert_checkpoint.py on files built like the released ones, and on files built to do harm."""

import argparse
import hashlib
import os
import pathlib
import sys
import types

import convert_checkpoint
import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.tensor([1.5], dtype=torch.float16)}


class CfgNode(dict):
    """Pickles like the configuration object of the released files: a dict subclass with attributes."""


@pytest.fixture
def cfg_node():
    """The class under the name `yacs.config.CfgNode`, importable while the file is written only."""
    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    sys.modules["yacs"], sys.modules["yacs.config"] = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    sys.modules["yacs.config"].CfgNode = CfgNode
    yield CfgNode
    for name in ("yacs", "yacs.config"):
        sys.modules.pop(name, None)


@pytest.fixture
def official(tmp_path, cfg_node):
    """A checkpoint with everything a released file holds; yacs is not importable when it is read."""
    config = cfg_node(MODEL=cfg_node(NAME="vssm1_tiny_0230s", DROP_PATH_RATE=0.2), TAG="20240101")
    config.__dict__.update({"__immutable__": True, "__deprecated_keys__": set(), "__renamed_keys__": {}})
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    path = tmp_path / "official.pth"
    torch.save({
        "model": WEIGHTS, "model_ema": {k: v + 1 for k, v in WEIGHTS.items()}, "optimizer": optimizer.state_dict(),
        "max_accuracy": np.float64(82.6), "confusion": np.eye(2), "args": argparse.Namespace(lr=1e-3),
        "folder": pathlib.PosixPath("output"), "epoch": 264, "config": config}, path)
    del sys.modules["yacs"], sys.modules["yacs.config"]
    return path


def run_failing(capsys, *argv):
    """Run a conversion that must fail, and return its one line on stderr."""
    assert convert_checkpoint.main([str(a) for a in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def assert_weights(path, expected):
    state = load_file(path)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)


@pytest.mark.parametrize(("key", "shift"), [("auto", 0), ("model", 0), ("model_ema", 1)])
def test_official_file(official, capsys, key, shift):
    assert convert_checkpoint.main([str(official), "--key", key]) == 0
    output = official.with_suffix(".safetensors")
    assert_weights(output, {k: v + shift for k, v in WEIGHTS.items()})
    with safe_open(output, "pt") as file:
        metadata = file.metadata()
    assert metadata == {
        "format": "pt", "source": "official.pth", "source_key": "model" if key == "auto" else key,
        "source_sha256": hashlib.sha256(official.read_bytes()).hexdigest()}
    printed = capsys.readouterr().out
    for name in ("yacs.config.CfgNode", "argparse.Namespace", "numpy.dtype", "pathlib.PosixPath"):
        assert f"{name}: replaced" in printed
    assert "yacs" not in sys.modules
    assert {p.name for p in output.parent.iterdir()} == {"official.pth", "official.safetensors"}


def test_bare_state_dict_and_shared_memory(tmp_path):
    shared = torch.arange(4.0)
    torch.save({"x": shared, "y": shared[1:]}, tmp_path / "bare.pth")
    assert convert_checkpoint.main([str(tmp_path / "bare.pth"), "--output", str(tmp_path / "out.safetensors")]) == 0
    assert_weights(tmp_path / "out.safetensors", {"x": shared, "y": shared[1:]})


class Harmful:
    """Creates a file when a careless reader unpickles it."""

    def __init__(self, call, *args):
        self.call = (call, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("call", "name"), [
    (os.system, f"{os.system.__module__}.system"), (eval, "eval"), (pathlib.Path.touch, "pathlib.Path")])
def test_harmful_file_is_refused_and_not_run(tmp_path, capsys, call, name, legacy):
    target = tmp_path / "harm"
    argument = {os.system: f"touch {target}", eval: f"open({str(target)!r}, 'w')"}.get(call, target)
    path = tmp_path / "harmful.pth"
    torch.save({"model": WEIGHTS, "config": Harmful(call, argument)}, path,
               _use_new_zipfile_serialization=not legacy)
    if call is not pathlib.Path.touch:  # the file does harm when read carelessly, so the refusal is worth something
        torch.load(path, weights_only=False)
        assert target.exists()
        target.unlink()
    assert name in run_failing(capsys, path)
    assert not target.exists()
    assert not path.with_suffix(".safetensors").exists()


def test_stand_in_name_runs_nothing_even_as_a_call(tmp_path, capsys):
    """A file may call an allowed name with any arguments; the stand-in ignores them."""
    torch.save({"model": WEIGHTS, "x": Harmful(argparse.Namespace, "any", "thing")}, tmp_path / "call.pth",
               pickle_protocol=2)
    assert convert_checkpoint.main([str(tmp_path / "call.pth")]) == 0
    assert "argparse.Namespace: replaced" in capsys.readouterr().out


def test_output_is_not_overwritten(official, capsys):
    output = official.with_suffix(".safetensors")
    output.write_bytes(b"precious")
    assert "--overwrite" in run_failing(capsys, official)
    assert output.read_bytes() == b"precious"
    assert convert_checkpoint.main([str(official), "--overwrite"]) == 0
    assert_weights(output, WEIGHTS)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x80\x02}q\x00."], ids=["empty", "text", "pickle"])
def test_damaged_file(tmp_path, capsys, content):
    (tmp_path / "x.pth").write_bytes(content)
    assert "x.pth" in run_failing(capsys, tmp_path / "x.pth")


def test_truncated_file(official, capsys):
    official.write_bytes(official.read_bytes()[:-200])
    assert "official.pth" in run_failing(capsys, official)


def test_bad_arguments(official, tmp_path, capsys):
    assert "there is no file" in run_failing(capsys, tmp_path / "missing.pth")
    assert "model_ema" in run_failing(capsys, official, "--key", "state_dict")
    assert "cannot write" in run_failing(capsys, official, "--output", tmp_path / "no" / "folder" / "x.safetensors")
    assert "would replace" in run_failing(capsys, official, "--output", official)
    assert "near names: test_vit" in run_failing(capsys, official, "--model", "test_vitt")
    torch.save({"model": {"epoch": 3}}, tmp_path / "odd.pth")
    assert "no tensors under epoch" in run_failing(capsys, tmp_path / "odd.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    assert "list" in run_failing(capsys, tmp_path / "list.pth")


def test_fit_to_a_model(tmp_path, capsys):
    model = timm.create_model("test_convnext", num_classes=7)
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    assert convert_checkpoint.main([str(path), "--model", "test_convnext", "--num-classes", "7"]) == 0
    output = path.with_suffix(".safetensors")
    assert_weights(output, model.state_dict())
    with safe_open(output, "pt") as file:
        assert file.metadata()["architecture"] == "test_convnext"
    output.unlink()

    capsys.readouterr()
    state = model.state_dict()
    state["extra"] = state.pop("stem.0.bias")
    torch.save(state, path)
    line = run_failing(capsys, path, "--model", "test_convnext")
    for key in ("stem.0.bias", "extra", "head.fc.weight", "head.fc.bias"):
        assert key in line
    assert not output.exists()
