"""Weights into the backbone, from every place and in every layout, and what does not fit."""
import os
import re

import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file
from torch import nn

import vmamba.openmmlab.checkpoint
from tests.models.test_vmamba_checkpoints import official
from vmamba.errors import UserError
from vmamba.openmmlab import TimmFeatureBackbone

MODEL = "test_vmamba"


class Touch:
    """Unpickles by running a command that leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def build(**options):
    return MODELS.build({"type": "TimmFeatureBackbone", "model_name": MODEL, **options})


def trained():
    """A backbone whose norms of the maps differ from fresh ones."""
    backbone = build()
    for name, parameter in backbone.named_parameters():
        if name.startswith("outnorm"):
            nn.init.normal_(parameter)
    return backbone


def official_detector(backbone):
    """The layout of the published detectors and segmentors, with the log that mmengine pickles beside the weights."""
    model = {k.removeprefix("model."): v for k, v in backbone.state_dict().items() if k.startswith("model.")}
    norms = {k: v for k, v in backbone.state_dict().items() if k.startswith("outnorm")}
    state = {f"backbone.{k}": v for k, v in {**official(model), **norms}.items()}
    log = HistoryBuffer([1.0], [1])
    return {"state_dict": {**state, "neck.conv.weight": torch.zeros(1)}, "meta": {},
            "message_hub": {"log_scalars": {"loss": log}}}


def own_detector(backbone):
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    return {"state_dict": {**state, "neck.conv.weight": torch.zeros(1)}}


def assert_same(backbone, source, norms):
    for (name, ours), theirs in zip(backbone.state_dict().items(), source.state_dict().values(), strict=True):
        if norms or not name.startswith("outnorm"):
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("option", ["pretrained", "init_cfg"])
@pytest.mark.parametrize("layout", [official_detector, own_detector])
def test_detector_into_backbone(tmp_path, layout, option):
    source, path = trained(), tmp_path / "detector.pth"
    torch.save(layout(source), path)
    checkpoint = {"type": "Pretrained", "checkpoint": str(path)} if option == "init_cfg" else str(path)
    backbone = build(**{option: checkpoint})
    backbone.init_weights()
    assert_same(backbone, source, norms=True)


@pytest.mark.parametrize("layout", [official_detector, own_detector])
def test_detector_as_a_whole(tmp_path, layout):
    """``load_from`` of a config: mmengine gives the whole model's state dict to the whole model."""
    source, path = trained(), tmp_path / "detector.pth"
    torch.save(layout(source), path)
    model = nn.Module()
    model.backbone = build()
    load_checkpoint(model, str(path), map_location="cpu")
    assert_same(model.backbone, source, norms=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("layout", ["timm", "official"])
def test_classifier_into_backbone(tmp_path, layout, suffix):
    source, path = timm.create_model(MODEL), tmp_path / f"classifier{suffix}"
    state = {k: v.contiguous() for k, v in source.state_dict().items()}
    state = state if layout == "timm" else {k: v.contiguous() for k, v in official(state).items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    backbone = build(pretrained=str(path), out_indices=(0, 1, 2))
    backbone.init_weights()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert torch.equal(backbone.outnorm0.weight, torch.ones(16))


def test_other_input_channels(tmp_path):
    source, path = timm.create_model(MODEL), tmp_path / "classifier.safetensors"
    save_file(source.state_dict(), path)
    backbone = build(pretrained=str(path), model_args={"in_chans": 1})
    backbone.init_weights()
    torch.testing.assert_close(
        backbone.model.stem.conv1.weight, source.stem.conv1.weight.sum(1, keepdim=True))


def test_timms_pretrained_weights(tmp_path):
    source, path = timm.create_model(MODEL), tmp_path / "classifier.safetensors"
    save_file(source.state_dict(), path)
    backbone = build(pretrained=True, model_args={"pretrained_cfg_overlay": {"file": str(path)}})
    assert not torch.equal(backbone.model.stem.conv1.weight, source.stem.conv1.weight)  # not before init_weights()
    backbone.init_weights()
    assert torch.equal(backbone.model.stem.conv1.weight, source.stem.conv1.weight)


def test_a_model_of_timm_itself(tmp_path):
    source, path = timm.create_model("test_convnext"), tmp_path / "classifier.safetensors"
    save_file(source.state_dict(), path)
    backbone = TimmFeatureBackbone("test_convnext", pretrained=str(path))
    backbone.init_weights()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("source", ["https://example.org/weights.pth", "hf-hub:owner/name"])
def test_from_the_network(tmp_path, monkeypatch, source):
    weights, path = timm.create_model(MODEL), tmp_path / "weights.pth"
    torch.save(weights.state_dict(), path)
    asked = []
    module = vmamba.openmmlab.checkpoint
    monkeypatch.setattr(module, "download_cached_file", lambda url: asked.append(url) or str(path))
    monkeypatch.setattr(
        module, "load_state_dict_from_hf", lambda name, **kwargs: asked.append(name) or weights.state_dict())
    backbone = build(pretrained=source)
    backbone.init_weights()
    assert asked == [source.removeprefix("hf-hub:")]
    assert torch.equal(backbone.model.stem.conv1.weight, weights.stem.conv1.weight)


def test_runner_style_initialisation_keeps_timms():
    """Only ``pretrained`` changes anything: the toolboxes' own schemes never touch the backbone."""
    backbone = build()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def other_family():
    return timm.create_model("test_convnext").state_dict()


def deeper_sibling():
    return timm.create_model(MODEL, depths=(1, 2, 3, 1)).state_dict()


def deeper_own():
    return own_detector(build(model_args={"depths": (1, 2, 3, 1)}))


def wider_own():
    return own_detector(build(model_args={"dims": (16, 24, 32, 40)}))


@pytest.mark.parametrize("content", [other_family, deeper_sibling, deeper_own, wider_own])
def test_checkpoint_of_another_model(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content(), path)
    backbone = build(pretrained=str(path))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is no checkpoint of test_vmamba: write the model_name "
                                        "that it was trained with") as error:
        backbone.init_weights()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 800
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(("pretrained", "message"), [
    (True, "no pretrained weights for test_vmamba .*; write pretrained=False, or a file"),
    ("nowhere.pth", "there is no checkpoint nowhere.pth; write a file, an https:// address"),
])
def test_weights_that_are_not_there(pretrained, message):
    with pytest.raises(UserError, match=message):
        build(pretrained=pretrained).init_weights()


def test_norms_without_a_place(tmp_path):
    path = tmp_path / "detector.pth"
    torch.save(official_detector(trained()), path)
    with pytest.raises(UserError, match="has a norm for each map: write out_norm=True for test_vmamba"):
        build(pretrained=str(path), out_norm=False).init_weights()


def test_malicious_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": build().state_dict(), "meta": Touch(str(tmp_path / "touched"))}, path)
    with pytest.raises(UserError, match="is refused, nothing of it was run"):
        build(pretrained=str(path)).init_weights()
    assert not (tmp_path / "touched").exists()
