"""A2Mamba against the official implementation."""
import re

import pytest
import torch
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import attentive_ssm
from vmamba.models.a2mamba import checkpoint_filter_fn, default_cfgs

RESSCALE = {"depths": (1, 1, 1, 1), "shortcut_scales": (None, None, 1.0, 1.0)}


def our_module(feature):
    if feature == "stem":
        return feature
    stage, part = re.fullmatch(r"stage(\d)(?:\.block1\.(\w+))?", feature).groups()
    mixer = {None: "", "mass": ".blocks.0.mixer", "a2ssm": ".blocks.0.mixer.ssm"}[part]
    return f"stages.{int(stage) - 1}{mixer}"


@pytest.mark.parametrize(("fixture", "kwargs"), [("a2mamba_n", {}), ("a2mamba_mini_resscale", RESSCALE)])
def test_matches_the_official_model(fixture, kwargs):
    meta, tensors = load_golden(f"a2mamba/{fixture}.json")
    meta["entries"] = [e for e in meta["entries"] if e[0] not in meta["computed_buffers"]]
    model = build_official(meta, "a2mamba_nano", checkpoint_filter_fn, **kwargs)
    assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})


def official(model, scale):
    """A state dict under the names of the official implementation."""
    renames = (
        (r"^stem\.convs\.(\d)\.(conv|norm)\.", lambda m: f"patch_embed.{3 * int(m[1]) + (m[2] == 'norm')}."),
        (r"^stages\.(\d)\.downsample\.(conv|norm)\.", lambda m: f"layers.{2 * int(m[1]) - 1}.{int(m[2] == 'norm')}."),
        (r"^stages\.(\d)\.", lambda m: f"layers.{2 * int(m[1])}."),
        (r"\.gate\.conv\.", ".gate.0."), (r"\.gate\.norm\.", ".gate.1."), (r"\.mixer\.proj\.", ".mixer.proj.1."),
        (r"\.proj_norm\.", ".proj.0."), (r"\.mixer\.bias$", ".mixer.rpb.0"), (r"\.global_bias$", ".rpb.2"),
        (r"\.ssm\.conv\.", ".ssm.conv2d."), (r"\.ssm\.x_proj\.weight", ".ssm.x_proj_weight"),
        (r"\.ssm\.dt_", ".ssm.dt_projs_"), (r"\.A_log$", ".A_logs"), (r"\.ssm\.D$", ".ssm.Ds"),
        (r"\.fusion\.", ".state_fusion."), (r"\.mlp\.conv\.", ".mlp.dwconv."), (r"\.mixer\.", ".token_mixer."),
        (rf"\.{scale}(\d)\.", r".layer_scale\1."), (r"^head\.project\.conv\.", "classifier.0."),
        (r"^head\.project\.norm\.", "classifier.1."), (r"^head\.fc\.", "classifier.4."))
    state = {}
    for key, value in model.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        state[key] = value[:, None, None, None] if key.endswith("layer_scale1.weight") else value
        if key.endswith("rpb.0"):
            state[key.replace("rpb.0", "rpb.1")] = value
    return state | {"layers.0.rope.angle": torch.ones(4)}


@pytest.mark.parametrize("scale", ["shortcut", "branch"])
def test_an_official_file_loads(tmp_path, scale):
    kwargs = {f"{scale}_scales": (None, None, 0.5, 0.5)}
    source = create_model("test_a2mamba", **kwargs).eval()
    torch.save({"state_dict": official(source, scale)}, tmp_path / "a2mamba.pth")
    overlay = {"file": str(tmp_path / "a2mamba.pth")}
    loaded = create_model("test_a2mamba", pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()
    x = torch.randn(1, 3, 40, 56)
    torch.testing.assert_close(loaded(x), source(x))


def test_scales_act_where_they_should():
    x = torch.randn(1, 4, 5, 32)
    plain = create_model("test_a2mamba").eval().stages[2].blocks[0]
    for kind in ("shortcut", "branch"):
        block = create_model("test_a2mamba", **{f"{kind}_scales": (None, None, 1.0, 1.0)}).eval().stages[2].blocks[0]
        block.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(block(x), plain(x))
        with torch.no_grad():
            getattr(block, f"{kind}2").weight.zero_()
            getattr(block, f"{kind}2").bias.zero_()
            y = block.cpe1(x)
            y = y + block.mixer(block.norm1(y))
            y = block.cpe2(y)
            expected = block.mlp(block.norm2(y)) if kind == "shortcut" else y
            torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_products_as_a_gpu_likes_them_are_the_same(device, monkeypatch):
    ssm = create_model("test_a2mamba").stages[1].blocks[0].mixer.ssm.to(device)
    torch.nn.init.normal_(ssm.fusion.bias)
    x, cos = torch.randn(2, 5, 7, 24, device=device), torch.randn(2, 5, 7, 24, device=device)
    near, far = torch.rand(2, 2, 5, 7, 1, 25, device=device).softmax(-1)
    results = []
    for fast in (False, True):
        monkeypatch.setattr(attentive_ssm, "runs_alone_on_gpu", lambda _, fast=fast: fast)
        ssm.zero_grad()
        y = ssm(x, near, far)
        (y * cos).sum().backward()
        results.append([y, *(p.grad for p in ssm.parameters())])
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_training_keeps_no_copies_of_windows():
    """Of what an attention keeps for its gradient, the weights of the windows are the largest."""
    mixer = create_model("test_a2mamba").stages[0].blocks[0].mixer
    x = torch.randn(1, 28, 28, 16)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        mixer(x)
    assert max(sizes) == 28 * 28 * 5 * 5


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        url = cfg.default.url or ""
        assert url.startswith("https://huggingface.co/LMMM2025/A2Mamba/") == (not name.startswith("test_"))
