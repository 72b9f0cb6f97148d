"""Checkpoints in the layouts that the authors of EfficientVMamba, MSVMamba and Spatial-Mamba publish."""
import re

import pytest
import torch
from timm.models import create_model

import vmamba  # noqa: F401
from vmamba.models.msvmamba import checkpoint_filter_fn


def rename(key, renames):
    for pattern, name in renames:
        key = re.sub(pattern, name, key)
    return key


VMAMBA = (
    (r"^stem\.conv\.", "patch_embed.0."), (r"^stem\.norm\.", "patch_embed.2."), (r"^norm\.", "classifier.norm."),
    (r"^head\.fc\.", "classifier.head."), (r"\.norm1\.", ".norm."), (r"\.mixer\.", ".op."),
    (r"\.op\.x_proj\.weight", ".op.x_proj_weight"), (r"\.op\.dt_", ".op.dt_projs_"), (r"\.op\.A_log$", ".op.A_logs"),
    (r"\.op\.D$", ".op.Ds"), (r"\.op\.conv\.", ".op.conv2d."),
)
EFFICIENTVMAMBA = (
    *VMAMBA,
    (r"\.attention\.norm", ".se.norm"), (r"\.attention\.reduce", ".se.global_reduce"),
    (r"\.attention\.expand", ".se.channel_select"),
    (r"\.conv_branch\.1\.", ".conv_branch.3."), (r"\.conv_branch\.0\.norm\.", ".conv_branch.1."),
    (r"\.conv_branch\.0\.conv\.", ".conv_branch.0."),
    (r"\.(expand|depthwise|project)\.conv\.", r".\1.0."), (r"\.(expand|depthwise|project)\.norm\.", r".\1.1."),
    (r"^(stages\.\d\.blocks\.\d)\.se\.(reduce|expand)\.", r"\1.se.conv_\2."),
    (r"\.expand\.(0|1)", r".conv_pw.\1"), (r"\.depthwise", ".conv_dw"), (r"\.project", ".conv_pw2"),
)
SPATIAL_MAMBA = (
    *VMAMBA[2:],
    (r"^stem\.", "patch_embed."), (r"^classifier\.", ""), (r"\.op\.", ".self_attention."),
    (r"(blocks\.\d)\.norm\.", r"\1.ln_1."), (r"\.norm2\.", ".ln_2."),
    (r"\.downsample\.expand\.", ".downsample.conv.0.conv."), (r"\.downsample\.depthwise\.", ".downsample.conv.1.conv."),
    (r"\.downsample\.project\.", ".downsample.conv.2."),
    (r"\.fusion\.kernel1$", ".fusion.kernel_3"), (r"\.fusion\.kernel3$", ".fusion.kernel_3_1"),
    (r"\.fusion\.kernel5$", ".fusion.kernel_3_2"), (r"\.fusion\.", ".state_fusion."),
)
MSVMAMBA = (
    *VMAMBA,
    (r"\.half_conv\.", ".conv2d_b1."), (r"\.se\.reduce\.", ".se.fc.0."), (r"\.se\.expand\.", ".se.fc.2."),
    (r"\.mlp\.fc(1|2)\.", r".convFFN.linear\1."), (r"\.mlp\.conv\.", ".convFFN.dwc."),
)


def official_value(key, value, directions):
    """Shapes of the official parameters: one stack for each kind, 1x1 convolutions."""
    if key.endswith("x_proj_weight"):
        return value.view(directions, -1, value.shape[1])
    if key.endswith((".A_logs", ".Ds")):
        return value.flatten(0, 1)
    return value[..., None, None] if re.search(r"\.(se\.conv|convFFN\.linear)\w+\.weight$", key) else value


def efficientvmamba(model):
    """Stages of convolutions are flat there: permutation, blocks, permutation, downsampling."""
    out = {}
    for native, value in model.state_dict().items():
        key = rename(native, EFFICIENTVMAMBA)
        key = re.sub(r"^stages\.([23])\.blocks\.(\d+)", lambda m: f"layers.{m[1]}.{int(m[2]) + 1}", key)
        key = re.sub(r"^stages\.([12])\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        key = key.replace("stages.3.downsample", f"layers.2.{len(model.stages[2].blocks) + 2}")
        key = key.replace("stages.", "layers.")
        out[key] = official_value(key, value, 4)
    return out


def msvmamba(model):
    out = {}
    for native, value in model.state_dict().items():
        key = re.sub(r"^stages\.([123])\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample",
                     rename(native, MSVMAMBA))
        key = key.replace("stages.", "layers.")
        out[key] = official_value(key, value, 2)
    return out


def spatial_mamba(model):
    """One direction, whose parameters have no axis for it."""
    out = {}
    for native, value in model.state_dict().items():
        key = re.sub(r"^stages\.([123])\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample",
                     rename(native, SPATIAL_MAMBA))
        per_direction = key.endswith((".dt_projs_weight", ".dt_projs_bias", ".A_logs", ".Ds"))
        out[key.replace("stages.", "layers.")] = value.squeeze(0) if per_direction else value
    return out


FAMILIES = {
    "test_efficientvmamba": (efficientvmamba, "state_dict"), "test_spatial_mamba": (spatial_mamba, "model"),
    "test_msvmamba": (msvmamba, "model"),
}


@pytest.fixture(params=FAMILIES)
def case(request):
    """Name of a small model, one with random statistics in its norms, its official state dict and its envelope."""
    model = create_model(request.param)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 1.5)
    official, envelope = FAMILIES[request.param]
    state = official(model)
    assert not any(key.startswith(("stages.", "stem.")) for key in state)
    return request.param, model.eval(), state, envelope


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_released_file(case, tmp_path, prefix):
    name, source, state, envelope = case
    path = tmp_path / "released.pth"
    torch.save({envelope: {prefix + k: v for k, v in state.items()}, "epoch": 300}, path)
    overlay = {"file": str(path)}
    model = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x))
        other = create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7).eval()
        torch.testing.assert_close(other.forward_features(x), source.forward_features(x))


def test_backbone_of_a_detector(case):
    name, source, state, _ = case
    state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith(("classifier.", "norm.", "head."))}
    state |= {f"backbone.outnorm{i}.weight": torch.ones(4) for i in range(4)} | {"neck.conv.weight": torch.ones(3)}
    model = create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": {"state_dict": state}}).eval()
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        expected = source.forward_intermediates(x, intermediates_only=True)
        for ours, theirs in zip(model(x), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_misfit_names_every_key(case):
    name, _, state, _ = case
    missing = next(k for k in state if k.endswith(".Ds"))
    del state[missing]
    state["layers.9.extra"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"nothing was loaded; 1 missing: .*mixer\.D; 1 unexpected: \S*extra"):
        create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state})


@pytest.mark.parametrize("gate", [False, True])
def test_msvmamba_on_the_second_trunk(gate):
    """The stem and downsampling of VMamba's second release are numbered."""
    v3 = {"ssm_ratio": 1.0, "mlp_ratio": 4.0, "conv_bias": False, "gate": gate, "patch_stem": False}
    source, target = create_model("test_msvmamba", **v3), create_model("test_msvmamba", **v3)
    stem, downsample = {"conv1": "0", "norm": "2", "conv2": "5", "norm2": "7"}, {"conv": "1", "norm": "3"}
    state = {}
    for key, value in msvmamba(source).items():
        key = re.sub(r"^stem\.(\w+)\.", lambda m: f"patch_embed.{stem[m[1]]}.", key)
        key = re.sub(r"\.downsample\.(\w+)\.", lambda m: f".downsample.{downsample[m[1]]}.", key)
        state[key] = value
    target.load_state_dict(checkpoint_filter_fn({"model": state}, target))
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs)
