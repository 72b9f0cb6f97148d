"""MambaVision against the official implementation, and what its mixer and windows compute."""
import re

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import SplitMixer, from_windows, to_windows
from vmamba.models.mambavision import checkpoint_filter_fn, default_cfgs
from vmamba.ops import selective_scan

NARROW = {  # sizes of the fixture that has a layer scale
    "dims": (32, 64, 128, 256), "stem_dim": 16, "depths": (1, 1, 3, 2), "num_heads": (8, 16), "layer_scale": 1e-5}


def our_module(feature, depths):
    if not feature.startswith("stage"):
        return feature
    stage, block = re.fullmatch(r"stage(\d)(?:\.block(1|last)\.\w+)?", feature).groups()
    stage = int(stage) - 1
    place = {None: "", "1": ".blocks.0.mixer", "last": f".blocks.{depths[stage] - 1}.mixer"}[block]
    return f"stages.{stage}{place}"


@pytest.mark.parametrize(("fixture", "kwargs"), [
    ("mambavision_t_224", {}), ("mambavision_b_shallow_ls_224", NARROW)])
def test_matches_the_official_model(fixture, kwargs):
    meta, tensors = load_golden(f"mambavision/{fixture}.json")
    model = build_official(meta, "mambavision_tiny", checkpoint_filter_fn, **kwargs)
    assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    features = {name: our_module(name, meta["config"]["depths"]) for name in meta["features"]}
    assert_parity(model, meta, tensors, features)


def test_later_half_of_a_stage_attends():
    model = create_model("mambavision_small", device="meta")
    kinds = [[isinstance(block.mixer, Attention) for block in stage.blocks] for stage in model.stages[2:]]
    assert kinds == [[False] * 4 + [True] * 3, [False] * 3 + [True] * 2]
    assert [stage.blocks[-1].mixer.num_heads for stage in model.stages[2:]] == [8, 16]


def test_mixer_is_a_scan_beside_a_convolution():
    """Against the paper's equations with torch's own convolutions; the bias of the step sizes counts twice."""
    mixer = SplitMixer(24, d_state=3).double()
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    y = F.conv1d(mixer.in_proj(x).mT, mixer.conv_weight.unsqueeze(1), padding=1, groups=24)
    u, z = F.silu(y).chunk(2, dim=1)
    r, B, C = mixer.x_proj(u.mT).mT.split([mixer.dt_rank, 3, 3], dim=1)
    delta = F.linear(r.mT, mixer.dt_weight, mixer.dt_bias).mT
    y = selective_scan(
        u, delta, -mixer.A_log.exp(), B, C, mixer.D, delta_bias=mixer.dt_bias, delta_softplus=True,
        backend="reference")
    torch.testing.assert_close(mixer(x), mixer.out_proj(torch.cat([y, z], dim=1).mT))


def test_windows_hold_neighbours_and_come_back():
    x = torch.arange(1.0, 31.0).view(1, 5, 6, 1)
    windows = to_windows(x, 4)
    assert windows.shape == (4, 16, 1)
    assert windows[0, :, 0].tolist() == [1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16, 19, 20, 21, 22]
    assert windows[3, :, 0].tolist() == [29, 30] + [0] * 14
    y = torch.randn(2, 7, 9, 3)
    assert torch.equal(from_windows(to_windows(y, 4), 4, 2, 7, 9), y)


def test_padding_stays_within_its_window():
    """A change in one window reaches no other within a stage."""
    stage = create_model("test_mambavision").eval().stages[2]
    stage.downsample = torch.nn.Identity()
    x = torch.randn(1, 5, 5, 32)
    changed = x.clone()
    changed[:, 4, 4] = torch.randn(32)
    with torch.no_grad():
        moved = (stage(changed) - stage(x)).abs().amax(-1)[0] > 1e-6
    assert moved[3:, 3:].all()
    assert not moved[:3].any()
    assert not moved[:, :3].any()


def official(model):
    """A state dict under the names of the official implementation."""
    renames = (
        (r"^stem\.conv1\.conv\.", "patch_embed.conv_down.0."), (r"^stem\.conv1\.norm\.", "patch_embed.conv_down.1."),
        (r"^stem\.conv2\.conv\.", "patch_embed.conv_down.3."), (r"^stem\.conv2\.norm\.", "patch_embed.conv_down.4."),
        (r"\.conv(\d)\.conv\.", r".conv\1."), (r"\.conv(\d)\.norm\.", r".norm\1."),
        (r"^stages\.(\d)\.downsample", lambda m: f"levels.{int(m[1]) - 1}.downsample.reduction.0"),
        (r"^stages\.", "levels."), (r"\.scale(\d)\.gamma$", r".gamma_\1"), (r"\.dt_(weight|bias)$", r".dt_proj.\1"),
        (r"^norm\.norm\.", "norm."), (r"^head\.fc\.", "head."))
    state = {}
    for key, value in model.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        if key.endswith(".conv_weight"):
            for half, part in zip("xz", value.unsqueeze(1).chunk(2), strict=True):
                state[key.replace("conv_weight", f"conv1d_{half}.weight")] = part.clone()
        else:
            state[key] = value
    return state


@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_official_file_loads(tmp_path, prefix):
    source = create_model("test_mambavision", layer_scale=0.5).eval()
    state = {prefix + k: v for k, v in official(source).items()}
    torch.save({"state_dict": state}, tmp_path / "mambavision.pth.tar")
    overlay = {"file": str(tmp_path / "mambavision.pth.tar")}
    loaded = create_model(
        "test_mambavision", pretrained=True, pretrained_cfg_overlay=overlay, layer_scale=0.5).eval()
    x = torch.randn(1, 3, 40, 56)
    torch.testing.assert_close(loaded(x), source(x))


def test_half_a_convolution_is_refused_by_name():
    model = create_model("test_mambavision")
    state = official(model)
    del state["levels.2.blocks.0.mixer.conv1d_z.weight"]
    with pytest.raises(RuntimeError, match=r"1 missing: \S*blocks\.0\.mixer\.conv_weight; 1 unexpected: \S*conv1d_x"):
        checkpoint_filter_fn(state, model)


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        url = cfg.default.url or ""
        assert url.startswith("https://huggingface.co/nvidia/MambaVision-") == (not name.startswith("test_"))
        assert cfg.default.license == ("apache-2.0" if name.startswith("test_") else "cc-by-nc-sa-4.0")
