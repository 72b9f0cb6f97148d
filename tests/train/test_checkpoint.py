"""Checkpoint files: what goes in comes out, and nothing else is loaded."""

import pickle

import pytest
import torch

from vmamba.errors import UserError
from vmamba.train.checkpoint import Description, load_state, load_weights, save_state, save_weights
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
    torch.save(WEIGHTS, tmp_path / "resume.pt")
    with pytest.raises(UserError, match="not the state of a run"):
        load_state(tmp_path / "resume.pt")


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
