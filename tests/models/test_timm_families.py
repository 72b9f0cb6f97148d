"""EfficientViM and MambaOut are timm's own: the official weights load there, and nothing here takes their names."""
import pytest
import timm
import torch

import vmamba  # noqa: F401
from tests.goldens import fill
from tests.support.parity import load_golden, official_state

FAMILIES = {"efficientvim": "efficientvim_m*", "mambaout": "mambaout_*"}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_of_timm(family):
    names = timm.list_models(FAMILIES[family])
    assert len(names) >= 5
    assert {timm.model_entrypoint(name).__module__ for name in names} == {f"timm.models.{family}"}


@pytest.mark.parametrize("fixture", ["efficientvim_m1", "efficientvim_m1_dist"])
def test_official_efficientvim_in_timm(fixture):
    """Through the checkpoint filter that timm has for the authors' files."""
    meta, tensors = load_golden(f"efficientvim/{fixture}.json")
    model = timm.create_model(
        fixture, pretrained=True, pretrained_cfg_overlay={"state_dict": {"model": official_state(meta)}}).eval()
    assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    with torch.no_grad():
        logits = model(fill.seeded_randn(meta["input"]["name"], meta["input"]["shape"]))
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "strides"), [("efficientvim_m1", [16, 32, 64]), ("mambaout_femto", [4, 8, 16, 32])])
def test_feature_maps(name, strides):
    backbone = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 128, 192))
    assert backbone.feature_info.reduction() == strides
    layout = [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(
        maps, backbone.feature_info.channels(), strict=True)]
    assert [tuple(m.shape[2:]) for m in layout] == [(128 // s, 192 // s) for s in strides]
