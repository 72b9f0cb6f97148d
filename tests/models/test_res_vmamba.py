"""Res-VMamba against the published code with given projections, and its two kinds of shortcuts."""
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, load_golden, official_state
from vmamba.models import res_vmamba
from vmamba.models import vmamba as plain

NUM_CLASSES = 241
MINI_DEPTHS = (1, 1, 2, 1)


def our_module(feature):
    if feature == "stem":
        return feature
    stage, part = re.fullmatch(r"(?:stage|layer)(\d)_?(out|\.block1\.ss2d|)", feature).groups()
    stage = int(stage) - 1
    if part == "out":  # an official layer ends with the downsampling that begins our next stage
        return f"stages.{stage + 1}.downsample" if stage < 3 else "stages.3.blocks"
    return f"stages.{stage}.blocks{'.0.mixer' if part else ''}"


@pytest.mark.parametrize("fixture", ["resvmamba_mini", pytest.param("resvmamba_s_trunk", marks=pytest.mark.slow)])
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"resvmamba/{fixture}.json")
    if meta["residual"]["enabled"]:
        meta["entries"] = meta["entries"] + meta["residual"]["keys"]
        model = create_model("res_vmamba_small", num_classes=NUM_CLASSES, depths=MINI_DEPTHS).eval()
        state = res_vmamba.checkpoint_filter_fn(official_state(meta), model)
    else:
        model = create_model("vmamba_small_v0", num_classes=NUM_CLASSES).eval()
        state = plain.checkpoint_filter_fn(official_state(meta), model)
        assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    model.load_state_dict(state)
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})


@pytest.mark.parametrize(("name", "trunk"), [
    ("res_vmamba_tiny", "vmamba_tiny_v0"), ("res_vmamba_small", "vmamba_small_v0"),
    ("res_vmamba_base", "vmamba_base_v0")])
def test_number_of_parameters_is_that_of_the_trunk_and_the_projections(name, trunk):
    ours, theirs = (sum(p.numel() for p in create_model(n, device="meta").parameters()) for n in (name, trunk))
    width = 128 if "base" in name else 96
    assert ours - theirs == sum((width * 2 ** i + 1) * width * 2 ** (i + 1) for i in range(3))


def test_shortcut_from_the_stem_is_added_to_three_maps():
    model = create_model("test_res_vmamba", residual="stem").eval()
    x = torch.randn(1, 3, 100, 56)
    with torch.no_grad():
        y = shortcut = model.stem(x)
        for i, stage in enumerate(model.stages):
            y = stage(y)
            if i < 3:
                if i > 0:
                    pooled = F.max_pool2d(shortcut.permute(0, 3, 1, 2), 2, ceil_mode=True).permute(0, 2, 3, 1)
                    shortcut = F.linear(pooled, model.res_proj[i - 1].weight, model.res_proj[i - 1].bias)
                y = y + shortcut
        torch.testing.assert_close(model.forward_features(x), model.norm(y))
    projections = {name for name, _ in model.named_parameters() if name.startswith("res_proj")}
    assert projections == {f"res_proj.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}


@pytest.mark.parametrize("residual", res_vmamba.RESIDUALS)
def test_pruned_models_train_every_parameter(residual):
    model = create_model("test_res_vmamba", residual=residual, features_only=True, out_indices=(0, 2))
    sum(y.sum() for y in model(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="residual is 'block', but needs one of 'stage', 'stem', 'none'"):
        create_model("test_res_vmamba", residual="block")


def test_a_published_checkpoint_is_refused_and_loads_as_the_trunk():
    model = create_model("test_res_vmamba")
    own = model.state_dict()
    state = {k: v for k, v in own.items() if not k.startswith("res_proj")}
    with pytest.raises(RuntimeError, match=r"has no res_proj .* vmamba_small_v0"):
        res_vmamba.checkpoint_filter_fn({"model": state}, model)
    loaded = res_vmamba.checkpoint_filter_fn(own, model)
    assert loaded.keys() == own.keys()
    trunk = create_model("test_res_vmamba", residual="none").eval()
    trunk.load_state_dict(res_vmamba.checkpoint_filter_fn({"model": state}, trunk))
    with torch.no_grad():
        for projection in model.eval().res_proj[:3]:
            projection.weight.zero_()
            projection.bias.zero_()
        x = torch.randn(1, 3, 40, 56)
        torch.testing.assert_close(trunk(x), model(x))


def test_former_names_work_and_warn():
    with pytest.warns(UserWarning, match="deprecated model name resvmamba_small to current res_vmamba_small"):
        model = create_model("resvmamba_small", device="meta")
    assert model.default_cfg["architecture"] == "res_vmamba_small"
    assert "resvmamba_small" not in timm.list_models()
