"""No file that a tool is given runs code, fetches anything, or decides where something is written."""
import ast
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vmamba.data import BundledDataset
from vmamba.train import fit, validate
from vmamba.train.checkpoint import _digest, save_state

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("vmamba", "kernels", "tools", "tests/support")
                 for path in (ROOT / folder).rglob("*.py"))
PAGES = ("tests/support/page_runner.py", "exec")    # runs the code of our own pages


def calls(path):
    """The calls in a file: dotted name, keywords, line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}, node


def test_every_load_is_a_safe_one():
    """`torch.load` with weights only, YAML by `safe_load`, no pickles, no text that is run."""
    refused = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
               "marshal.loads", "dill.load", "joblib.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load",
               "yaml.load_all"}
    found, loads = [], 0
    for path in SOURCES:
        for name, keywords, node in calls(path):
            where = f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
            if name == "torch.load":
                loads += 1
                if keywords.get("weights_only") != "True":
                    found.append(where)
            elif (str(path.relative_to(ROOT)), name) == PAGES:
                continue
            elif name in refused or keywords.get("allow_pickle") == "True" or keywords.get("shell") == "True":
                found.append(where)
    assert found == []
    assert loads >= 3


class Evil:
    """What a pickle can do when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 training and 2 validation images of two classes."""
    root = tmp_path_factory.mktemp("data")
    digits = BundledDataset("digits", "train")
    for label, name in enumerate(("ant", "bee")):
        numbers = [index for index, value in enumerate(digits.labels) if value == label]
        for split, chosen in (("train", numbers[:4]), ("val", numbers[4:5])):
            (root / split / name).mkdir(parents=True)
            for number in chosen:
                digits[number][0].save(root / split / name / f"{number}.png")
    return root


def flags(folder, output, *more):
    return ["--model", "test_vmamba", "--data-dir", str(folder), "--img-size", "32", "-b", "8", "--epochs", "1",
            "--warmup-epochs", "0", "--workers", "0", "--device", "cpu", "--output", str(output), "--experiment", "run",
            *more]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs")
    assert fit.main(flags(folder, output)) == 0
    return output / "run"


@pytest.mark.parametrize("kind", ["initial", "teacher", "state", "validate", "class-map", "config", "transforms"])
def test_pickles_are_not_run(kind, folder, tmp_path, capsys):
    evil, marker = tmp_path / "evil.pth", tmp_path / "run-by-pickle"
    evil.write_bytes(pickle.dumps({"state_dict": Evil(marker)}, protocol=2))
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"ant": Evil(marker), "bee": 1}))
    (tmp_path / "evil.yaml").write_text(f"model: !!python/object/apply:os.mkdir ['{marker}']\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "args.yaml").write_text(f"model: test_vmamba\ndata_dir: {folder}\nimg_size: 32\nworkers: 0\nbatch_size: 8\n")
    save_state(run / "resume.pt", {"description": Evil(marker)})    # with a SHA-256 that is right
    output = tmp_path / "out"
    argv = {
        "initial": flags(folder, output, "--initial-checkpoint", str(evil)),
        "teacher": flags(folder, output, "--kd-model", "test_vmamba", "--kd-checkpoint", str(evil)),
        "state": ["--resume", str(run), "--device", "cpu"],
        "class-map": flags(folder, output, "--class-map", str(tmp_path / "evil.pkl")),
        "config": flags(folder, output, "-c", str(tmp_path / "evil.yaml")),
        "transforms": flags(folder, output, "--aug", "torchvision", "--aug-config", str(tmp_path / "evil.yaml")),
        "validate": ["--checkpoint", str(evil), "--model", "test_vmamba", "--data-dir", str(folder)],
    }[kind]
    assert (validate if kind == "validate" else fit).main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not marker.exists()
    assert not output.exists()


def rewrite(source, path, **changes):
    """Copies weights with another description, whose SHA-256 is right."""
    with safe_open(source, framework="pt") as file:
        description = {**json.loads(file.metadata()["vmamba"]), **changes}
    weights, text = load_file(source), json.dumps(description)
    save_file(weights, path, {"format": "pt", "vmamba": text, "sha256": _digest(weights, text)})


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "the model argument checkpoint_path, which no checkpoint may"),
    ({"model_args": {"cache_dir": "/tmp"}}, "the model argument cache_dir"),
    ({"model_args": {"pretrained_cfg": {"url": "http://x"}}}, "the model argument pretrained_cfg"),
    ({"architecture": "hf-hub:someone/something"}, "is fetched only if you ask for it: give --model hf-hub:someone"),
    ({"architecture": "local-dir:/etc"}, "is fetched only if you ask for it"),
    ({"architecture": "../../x"}, "unknown model '../../x'"),
    ({"architecture": ["x"]}, "has architecture ['x'], which is no str"),
    ({"dataset": "hfds/someone/something"}, "no dataset: give --data-dir FOLDER or --dataset NAME"),
    ({"label_names": ["one"]}, "no name for each of its 2 classes"),
    ({"label_names": [1, 2]}, "no name for each of its 2 classes"),
    ({"data_config": {"input_size": [3, 10**7, 10**7]}}, "does not take images of 3x10000000x10000000"),
    ({"more": 1}, "unexpected keyword argument"),
])
def test_descriptions_decide_nothing(trained, tmp_path, changes, message, capsys):
    rewrite(trained / "last.safetensors", tmp_path / "w.safetensors", **changes)
    argv = ["--checkpoint", str(tmp_path / "w.safetensors"), "--device", "cpu"]
    assert validate.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_states_decide_no_names_of_files(trained, folder, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "args.yaml").write_text((trained / "args.yaml").read_text())
    state = torch.load(trained / "resume.pt", weights_only=True)
    state["progress"]["epoch"] = "../../escape"
    save_state(run / "resume.pt", state)
    assert fit.main(["--resume", str(run), "--epochs", "2", "--checkpoint-interval", "1"]) == 2
    assert "its progress is " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_resumed_run_stays_in_its_directory(trained, folder, tmp_path):
    """Whatever its args.yaml says about where runs go."""
    run = tmp_path / "here" / "run"
    run.mkdir(parents=True)
    text = (trained / "args.yaml").read_text().replace(str(trained.parent), str(tmp_path / "elsewhere"))
    (run / "args.yaml").write_text(text.replace("experiment: run", "experiment: ../../escape"))
    assert fit.main(["--resume", str(run)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"here"}
    assert {path.name for path in run.parent.iterdir()} == {"run"}


def test_names_in_tar_files_stay_names(tmp_path):
    """A class folder called `../../escape` is read, never made."""
    digits = BundledDataset("digits", "train")
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        with tarfile.open(tmp_path / "data" / f"{split}.tar", "w") as file:
            for name, number in (("../../escape", 0), ("/abs", 1)):
                for copy in range(4):
                    buffer = io.BytesIO()
                    digits[number][0].save(buffer, "png")
                    info = tarfile.TarInfo(f"{name}/{copy}.png")
                    info.size = buffer.tell()
                    buffer.seek(0)
                    file.addfile(info, buffer)
    assert fit.main(flags(tmp_path / "data", tmp_path / "out", "--data-cache", str(tmp_path / "cache"))) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "data", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run"}
