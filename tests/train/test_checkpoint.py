"""Checkpoint files: what goes in comes out, and nothing else is loaded."""

import pickle
import re
import resource

import pytest
import torch

from vmamba.errors import UserError
from vmamba.train.checkpoint import (
    Description,
    load_newest_state,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from vmamba.train.run_directory import RunDirectory, atomic_path

WEIGHTS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3)}
DESCRIPTION = Description("m", 3, label_names=["ä", "b", "c"], data_config={"mean": [0.5]}, metrics={"top1": 50.0})


def test_safetensors_round_trip(tmp_path):
    save_weights(tmp_path / "w.safetensors", WEIGHTS, DESCRIPTION)
    weights, description = load_weights(tmp_path / "w.safetensors")
    assert description == DESCRIPTION
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_ema_is_the_file_beside(tmp_path):
    save_weights(tmp_path / "w.safetensors", WEIGHTS, DESCRIPTION)
    with pytest.raises(UserError, match=r"no averaged weights .* w_ema.safetensors is not beside it"):
        load_weights(tmp_path / "w.safetensors", use_ema=True)
    save_weights(tmp_path / "w_ema.safetensors", {"a": torch.ones(1)}, DESCRIPTION)
    assert load_weights(tmp_path / "w.safetensors", use_ema=True)[0].keys() == {"a"}


@pytest.mark.parametrize(("content", "use_ema", "found"), [
    (WEIGHTS, False, True),
    ({"model": WEIGHTS, "epoch": 3}, False, True),
    ({"state_dict": WEIGHTS}, False, True),
    ({"state_dict": {}, "state_dict_ema": WEIGHTS}, True, True),
    (WEIGHTS, True, False),
    ({"epoch": 3}, False, False),
    ([1, 2], False, False),
])
def test_pytorch_files(tmp_path, content, use_ema, found):
    torch.save(content, tmp_path / "w.pth")
    if found:
        weights, description = load_weights(tmp_path / "w.pth", use_ema)
        assert torch.equal(weights["a"], WEIGHTS["a"])
        assert description is None
    else:
        with pytest.raises(UserError, match="holds no"):
            load_weights(tmp_path / "w.pth", use_ema)


class Evil:
    def __reduce__(self):
        return (open, ("/dev/null",))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_pickled_objects_are_not_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": Evil()}, protocol=2))
    with pytest.raises(UserError, match=r"checkpoint .*/w\."):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_truncated_files(tmp_path, name, kept):
    path = tmp_path / name
    if name.endswith("pth"):
        save_state(path, {"state_dict": WEIGHTS})
    else:
        save_weights(path, WEIGHTS, DESCRIPTION)
    content = path.read_bytes()
    path.write_bytes(content[:kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(UserError, match="checkpoint"):
        load_weights(path)


def test_missing_and_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        load_weights(tmp_path)


def test_state_must_be_a_state(tmp_path):
    save_state(tmp_path / "resume.pt", WEIGHTS)
    with pytest.raises(UserError, match="not the state of a run"):
        load_state(tmp_path / "resume.pt")
    torch.save({"description": {}}, tmp_path / "resume.pt")
    with pytest.raises(UserError, match=r"incomplete, or not written by tools/train.py"):
        load_state(tmp_path / "resume.pt")


STATE = {"description": {"architecture": "m"}, "state_dict": WEIGHTS, "progress": {"epoch": 3}}


def test_every_damaged_byte_of_a_state_is_seen(tmp_path):
    """One flipped bit in any part of the file, and the file cut at any place: nothing is loaded."""
    path = tmp_path / "resume.pt"
    save_state(path, STATE)
    content = path.read_bytes()
    assert load_state(path)["progress"] == {"epoch": 3}
    assert torch.load(path, weights_only=True)["progress"] == {"epoch": 3}     # PyTorch itself reads it as well
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1:])
        with pytest.raises(UserError, match=r"cannot read checkpoint .*(SHA-256|incomplete)"):
            load_state(path)
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match=r"cannot read checkpoint .*incomplete"):
            load_state(path)


def test_every_damaged_byte_of_weights_is_seen_or_harmless(tmp_path):
    """A flipped bit is refused, or falls on padding and changes nothing of what is read; a cut file is refused."""
    path = tmp_path / "w.safetensors"
    save_weights(path, WEIGHTS, DESCRIPTION)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1:])
        try:
            weights, description = load_weights(path)
        except UserError:
            refused += 1
            continue
        assert description == DESCRIPTION
        assert weights.keys() == WEIGHTS.keys()
        assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert refused > 0.9 * len(content)
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match="checkpoint"):
            load_weights(path)


def test_previous_state_takes_over_from_a_damaged_one(tmp_path, capsys):
    run = RunDirectory(tmp_path)
    assert load_newest_state(run) is None
    for epoch in (1, 2):
        save_state(run.state, {**STATE, "progress": {"epoch": epoch}}, previous=run.previous_state)
    assert load_newest_state(run)["progress"] == {"epoch": 2}
    run.state.write_bytes(run.state.read_bytes()[:-1])
    assert load_newest_state(run)["progress"] == {"epoch": 1}
    assert re.fullmatch(r"warning: cannot read checkpoint \S+/resume.pt: it is incomplete.*; continuing from "
                        r"resume_previous.pt\n", capsys.readouterr().err)
    # put aside, so that the next save does not push the good one out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume_damaged.pt", "resume_previous.pt"]
    save_state(run.state, {**STATE, "progress": {"epoch": 5}}, previous=run.previous_state)
    assert load_newest_state(run)["progress"] == {"epoch": 5}
    assert load_state(run.previous_state)["progress"] == {"epoch": 1}
    for path in (run.state, run.previous_state):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"resume_previous.pt: it is incomplete"):
        load_newest_state(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    path = tmp_path / "w.safetensors"
    save_weights(path, WEIGHTS, DESCRIPTION)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"w.safetensors is not written: 1 of the model's tensors, such as a, hold"):
        save_weights(path, {**WEIGHTS, "a": torch.tensor([1.0, value])}, DESCRIPTION)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["resume.pt", "w.safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    def save(count):
        values = torch.full((count,), float(count))
        if name == "resume.pt":
            save_state(tmp_path / name, {"a": values})
        else:
            save_weights(tmp_path / name, {"a": values}, DESCRIPTION)

    save(1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))      # a disk that ends there
    try:
        with pytest.raises(UserError, match=rf"^cannot write {tmp_path}/{name}: File too large$"):
            save(100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert torch.equal(load_weights(tmp_path / name)[0]["a"], torch.full((1000,), 1000.0))


def test_atomic_path_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("f", "old")]


def test_run_directory_of_a_state_file(tmp_path):
    assert RunDirectory(tmp_path / "resume.pt").path == tmp_path
