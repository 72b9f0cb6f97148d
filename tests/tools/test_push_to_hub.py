"""tools/push_to_hub.py: what timm gives back from a folder or the Hub is the model that was trained."""
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import push_to_hub
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from vmamba._timm import save_for_hf
from vmamba.train import predict

NAMES = ["one", "three", "two"]


def weights_of(run):
    return str(run / "model_best.safetensors")


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))


def expected_logits(run):
    model = timm.create_model("test_vmamba", num_classes=3)
    model.load_state_dict(load_file(weights_of(run)))
    return logits(model)


def test_folder_gives_the_same_model_back(trained, tmp_path, capsys):
    folder = tmp_path / "exported" / "digits"
    assert push_to_hub.main([weights_of(trained), "--license", "mit", "--output", str(folder)]) == 0
    assert f'timm.create_model("local-dir:{folder}", pretrained=True)' in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(logits(model), expected_logits(trained))
    cfg = model.pretrained_cfg
    assert cfg["label_names"] == NAMES
    assert cfg["num_classes"] == 3
    assert tuple(cfg["input_size"]) == (3, 32, 32)
    assert cfg["license"] == "mit"
    assert cfg["architecture"] == "test_vmamba"
    assert not cfg.get("notes")
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
    assert [y.shape[1] for y in backbone(torch.zeros(1, 3, 64, 64))] == [16, 24, 32, 48]


def test_card_of_the_folder(trained, tmp_path):
    folder = tmp_path / "digits"
    assert push_to_hub.main([weights_of(trained), "--license", "cc-by-4.0", "--output", str(folder)]) == 0
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    assert "- **Classes:** 3: one, three, two" in card.text
    assert re.search(r"\*\*Validation:\*\* .*top1 [\d.]+.* after [12] epochs", card.text)
    assert "arxiv.org/abs/2401.10166" in card.text
    assert card.text.index("import vmamba") < card.text.index(f"local-dir:{folder}")


def test_example_of_the_card_runs(trained, image_folder, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "digits"
    assert push_to_hub.main([weights_of(trained), "--license", "mit", "--output", str(folder)]) == 0
    photo = sorted((image_folder / "val" / "two").iterdir())[0]
    shutil.copy(photo, tmp_path / "photo.jpg")      # Pillow looks at the content, not at the name
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    named = re.findall(r"'(\w+)'", capsys.readouterr().out)
    assert predict.main(["--checkpoint", weights_of(trained), str(photo), "--topk", "3"]) == 0
    assert named == re.findall(r"(one|two|three) [\d.]+ %", capsys.readouterr().out)


def test_tools_take_the_folder(trained, image_folder, tmp_path, capsys):
    folder = tmp_path / "digits"
    assert push_to_hub.main([weights_of(trained), "--license", "mit", "--output", str(folder)]) == 0
    photo = str(sorted((image_folder / "val" / "two").iterdir())[0])
    capsys.readouterr()
    assert predict.main(["--checkpoint", weights_of(trained), photo]) == 0
    expected = capsys.readouterr().out
    assert predict.main(["--model", f"local-dir:{folder}", "--pretrained", photo]) == 0
    assert capsys.readouterr().out == expected


class Hub:
    """Stands in for huggingface_hub.HfApi: keeps what is uploaded."""

    repositories = {}  # noqa: RUF012  (emptied by the fixture)

    def __init__(self, **_):
        pass

    def create_repo(self, repo_id, private=False, exist_ok=False):
        if repo_id.startswith("other/"):
            raise OSError("403 Forbidden: you have no rights\nto other/")
        self.repositories.setdefault(repo_id, {"private": private})
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id, filename, revision=None):
        return filename in self.repositories[repo_id]

    def upload_folder(self, repo_id, folder_path, revision, create_pr, commit_message):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.repositories[repo_id].update(files)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("timm.models._hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "repositories", {})
    return Hub.repositories


def test_push_uploads_what_timm_reads(trained, hub, tmp_path, capsys):
    assert push_to_hub.main([weights_of(trained), "--license", "mit", "--repo-id", "me/digits", "--private"]) == 0
    assert 'timm.create_model("hf-hub:me/digits", pretrained=True)' in capsys.readouterr().out
    uploaded = hub["me/digits"]
    assert set(uploaded) == {"private", "README.md", "config.json", "model.safetensors"}
    assert uploaded.pop("private") is True
    assert json.loads(uploaded["config.json"])["label_names"] == NAMES
    assert "hf-hub:me/digits" in uploaded["README.md"].decode()
    for name, content in uploaded.items():
        (tmp_path / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits(model), expected_logits(trained))


def test_push_keeps_a_readme_that_is_there(trained, hub):
    hub["me/digits"] = {"README.md": b"mine"}
    assert push_to_hub.main([weights_of(trained), "--license", "mit", "--repo-id", "me/digits"]) == 0
    assert hub["me/digits"]["README.md"] == b"mine"


@pytest.mark.parametrize(("flags", "message"), [
    (["--repo-id", "other/digits"], "error: cannot push to other/digits: 403 Forbidden: you have no rights to other/"),
    (["--output", "."], "error: . exists: give another --output")])
def test_refusals_are_one_line(flags, message, trained, hub, capsys):
    assert push_to_hub.main([weights_of(trained), "--license", "mit", *flags]) == 2
    assert capsys.readouterr().err.strip() == message


@pytest.mark.parametrize(("name", "arguments"), [
    ("test_vmamba", {"scan": "hilbert4", "global_pool": "max"}), ("test_vim", {"img_size": 64}),
    ("test_videomamba", {"num_frames": 4, "img_size": 64}), ("test_rsmamba", {"in_chans": 4}),
    ("test_mambavision", {})])
def test_every_kind_of_model_comes_back(name, arguments, tmp_path):
    """timm's own functions, on models that were changed after they were built."""
    model = timm.create_model(name, num_classes=7, **arguments)
    model.reset_classifier(5)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=48)
    labels = {"label_names": list("abcde"), "label_descriptions": {"a": "first"}}
    save_for_hf(model, tmp_path, model_config=labels, safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, model.in_chans, *([4] if name == "test_videomamba" else []), 48, 48)
    with torch.no_grad():
        assert torch.equal(back(x), model.eval()(x))
    assert back.pretrained_cfg["label_names"] == list("abcde")
    assert back.pretrained_cfg["label_descriptions"] == {"a": "first"}
    assert back.pretrained_cfg["num_classes"] == 5
