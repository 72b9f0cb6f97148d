import os
import re
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from timm.models import create_model, save_for_hf

import vmamba  # noqa: F401
from vmamba.models.vmamba import checkpoint_filter_fn


class Touch:
    """Unpickles by running a command that leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


V0 = {"d_state": 4, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "conv_bias": True, "gate": True, "patch_stem": True}


def build(v0=False, **kwargs):
    return create_model("test_vmamba", **{**(V0 if v0 else {}), **kwargs})


def official(state, v0=False):
    """Our state dict under the names and shapes of the official implementation."""
    stem = {"conv": "0", "norm": "2"} if v0 else {"conv1": "0", "norm1": "2", "conv2": "5", "norm2": "7"}
    out = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.(\w+)", lambda m: f"patch_embed.{stem[m[1]]}", key)
        key = re.sub(r"^stages\.(\d+)\.blocks", r"layers.\1.blocks", key)
        match = re.match(r"^stages\.(\d+)\.downsample\.(\w+)\.(.*)", key)
        if match:
            part = match[2] if v0 else {"conv": "1", "norm": "3"}[match[2]]
            key = f"layers.{int(match[1]) - 1}.downsample.{part}.{match[3]}"
        key = key.replace(".norm1.", ".norm.").replace(".mixer.", ".op.").replace(".op.conv.", ".op.conv2d.")
        if key.endswith(".op.x_proj.weight"):
            key, value = key.replace("x_proj.weight", "x_proj_weight"), value.view(4, -1, value.shape[1])
        if key.endswith((".op.A_log", ".op.D")):
            key, value = key + "s", value.flatten(0, 1)
        key = key.replace(".op.dt_", ".op.dt_projs_")
        out[re.sub(r"^head\.fc", "classifier.head", re.sub(r"^norm\.", "classifier.norm.", key))] = value
    return out


def legacy(state):
    renames = ((r"patch_embed\.0", "patch_embed.proj"), (r"patch_embed\.2", "patch_embed.norm"),
               (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."), (r"\.op\.", ".self_attention."),
               (r"^classifier\.", ""))
    out = {}
    for key, value in state.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        out[key] = value
    return out


def rewrite(state):
    out = {}
    for key, value in state.items():
        if key.endswith("x_proj_weight"):
            key, value = key.replace("x_proj_weight", "x_proj.weight"), value.flatten(0, 1).unsqueeze(-1)
        elif key.endswith(("dt_projs_weight", "dt_projs_bias")):
            key, value = re.sub(r"dt_projs_(\w+)$", r"dt_projs.\1", key), value.flatten(0, 1)
        out[key] = value
    return out


def convolutions(state):
    return {k: v[..., None, None] if v.ndim == 2 and re.search(r"(proj|fc\d|reduction)\.weight$", k) else v
            for k, v in state.items()}


LAYOUTS = {
    "native": lambda s, v0: s,
    "official": official,
    "legacy names": lambda s, v0: legacy(official(s, v0)) if v0 else official(s, v0),
    "one-file rewrite": lambda s, v0: rewrite(official(s, v0)),
    "1x1 convolutions": lambda s, v0: convolutions(official(s, v0)),
    "training envelope": lambda s, v0: {
        "model": official(s, v0), "optimizer": {"state": {}}, "model_ema": {"junk": torch.zeros(1)}, "epoch": 3},
    "ema envelope": lambda s, v0: {"model_ema": {f"module.{k}": v for k, v in official(s, v0).items()}},
}


@pytest.mark.parametrize("v0", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_filter_takes_every_layout(layout, v0):
    source, target = build(v0), build(v0)
    state = checkpoint_filter_fn(LAYOUTS[layout](source.state_dict(), v0), target)
    target.load_state_dict(state)
    for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_backbone_of_a_detector():
    source = build()
    state = {f"backbone.{k}": v for k, v in official(source.state_dict()).items() if not k.startswith("classifier.")}
    state |= {f"backbone.outnorm{i}.weight": torch.ones(4) for i in range(4)} | {"neck.conv.weight": torch.ones(3)}
    overlay = {"state_dict": {"state_dict": state, "meta": {}}}
    model = build(features_only=True, pretrained=True, pretrained_cfg_overlay=overlay)
    x = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(model(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_file_overlay(tmp_path, suffix):
    source = build()
    path = tmp_path / f"weights{suffix}"
    state = {k: v.contiguous() for k, v in official(source.state_dict()).items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    overlay = {"file": str(path)}
    x = torch.randn(1, 3, 32, 32)
    model = build(pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(model(x), source(x))
    other = build(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1)
    assert other(x[:, :1]).shape == (1, 7)
    torch.testing.assert_close(other.norm.weight, source.norm.weight)


def test_published_file_with_pickled_configuration(tmp_path, monkeypatch):
    """The official files hold a yacs CfgNode, which must neither be needed nor run."""
    source = build()
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    path = tmp_path / "official.pth"
    torch.save({"model": official(source.state_dict()), "config": module.CfgNode(lr=0.1)}, path)
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")

    overlay = {"file": str(path)}
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(build(pretrained=True, pretrained_cfg_overlay=overlay)(x), source(x))
    other = build(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    torch.testing.assert_close(other.forward_features(x), source.forward_features(x))
    backbone = build(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    torch.testing.assert_close(backbone(x), source.forward_intermediates(x, intermediates_only=True))


def test_malicious_pickle_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": build().state_dict(), "config": Touch(str(tmp_path / "touched"))}, path)
    with pytest.raises(ValueError, match="is refused, nothing of it was run"):
        build(pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert not (tmp_path / "touched").exists()


def test_hub_round_trip(tmp_path):
    source = build(num_classes=3, scan="bidi")
    save_for_hf(source, tmp_path / "model", safe_serialization=True)
    loaded = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, scan="bidi")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(x), source(x))


def test_misfit_names_every_key_and_loads_nothing():
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = official(build().state_dict())
    del state["layers.0.blocks.0.op.Ds"], state["patch_embed.7.bias"]
    state["layers.9.extra"] = torch.zeros(1)
    state["layers.1.blocks.0.mlp.fc1.weight"] = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match="nothing was loaded") as error:
        build(pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    message = str(error.value)
    for part in ("test_vmamba", "2 missing: stem.norm2.bias, stages.0.blocks.0.mixer.D", "1 unexpected: layers.9.extra",
                 "1 of another shape: stages.1.blocks.0.mlp.fc1.weight [3, 3] instead of [96, 24]"):
        assert part in message
    with pytest.raises(RuntimeError, match="nothing was loaded"):
        checkpoint_filter_fn(state, model)
    with pytest.raises(RuntimeError, match="nothing was loaded"):
        model.load_state_dict(state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_checkpoint_of_another_family():
    other = create_model("test_convnext").state_dict()
    with pytest.raises(RuntimeError, match="does not fit VMamba"):
        build(pretrained=True, pretrained_cfg_overlay={"state_dict": other}, num_classes=10)


def test_weights_of_another_layout_with_equal_size_are_refused():
    model = build()
    state = official(model.state_dict())
    key = "layers.0.blocks.0.mlp.fc1.weight"
    state[key] = state[key].t().contiguous()  # same numbers of elements, another matrix
    with pytest.raises(RuntimeError, match=r"1 of another shape: stages\.0\.blocks\.0\.mlp\.fc1\.weight"):
        checkpoint_filter_fn(state, model)
