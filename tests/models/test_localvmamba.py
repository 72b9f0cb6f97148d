import re

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.goldens import GOLDENS
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import LocalSS2D
from vmamba.models.localvmamba import checkpoint_filter_fn, default_cfgs
from vmamba.ops import ss2d_scan
from vmamba.scans import scan_order


def our_module(feature):
    feature = {"patch_embed": "stem", "classifier.norm": "norm", "layers.3": "stages.3"}.get(feature, feature)
    # an official stage ends with the downsampling that begins our next one
    feature = re.sub(r"^layers\.(\d)$", lambda m: f"stages.{int(m[1]) + 1}.downsample", feature)
    return re.sub(r"\.op$", ".mixer", re.sub(r"^layers\.", "stages.", feature))


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "localvmamba").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"localvmamba/{fixture}.json")
    scans = ["+".join(directions) for directions in meta["config"]["directions"]]
    model = build_official(meta, fixture.replace("local_", "local"), checkpoint_filter_fn)
    assert [block.mixer.scan for stage in model.stages for block in stage.blocks] == scans
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})


def test_mixer_weighs_each_direction_by_its_own_mean():
    mixer = LocalSS2D(16, "h+v_flip+w2+w2_flip", d_state=3).double()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    u = mixer.conv(u).flatten(1, 2)
    proj = mixer.x_proj(u).unflatten(-1, (4, -1))
    parts = ss2d_scan(
        u, proj, mixer.dt_weight, mixer.dt_bias, mixer.A_log, mixer.D, scan_order(mixer.scan, (3, 5)), merge=None,
        backend="reference")
    total = 0
    for k in range(4):
        gate = mixer.attention.norm(parts[:, k]).mean(1, keepdim=True)
        total = total + parts[:, k] * mixer.attention.expand(F.gelu(mixer.attention.reduce(gate))).sigmoid()
    expected = mixer.out_proj(mixer.out_norm(total).view(z.shape) * F.silu(z))
    torch.testing.assert_close(mixer(x), expected)


def test_an_official_file_loads(tmp_path):
    source = create_model("test_localvmamba").eval()
    renames = (
        (r"^stem\.conv\.", "patch_embed.0."), (r"^stem\.norm\.", "patch_embed.2."), (r"^norm\.", "classifier.norm."),
        (r"^head\.fc\.", "classifier.head."), (r"\.norm1\.", ".norm."),
        (r"\.mixer\.attention\.", ".op.multi_scan.attn."),
        (r"\.attn\.reduce\.", ".attn.global_reduce."), (r"\.attn\.expand\.", ".attn.channel_select."),
        (r"\.mixer\.", ".op."), (r"\.op\.x_proj\.weight", ".op.x_proj_weight"), (r"\.op\.dt_", ".op.dt_projs_"),
        (r"\.A_log$", ".A_logs"), (r"\.op\.D$", ".op.Ds"), (r"\.op\.conv\.", ".op.conv2d."),
        (r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"), (r"^stages\.", "layers."))
    state = {}
    for key, value in source.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        if key.endswith("x_proj_weight"):
            value = value.view(4, -1, value.shape[1])
        state[key] = value.flatten(0, 1) if key.endswith((".A_logs", ".Ds")) else value
    torch.save({"state_dict": state}, tmp_path / "local.ckpt")
    loaded = create_model(
        "test_localvmamba", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "local.ckpt")}).eval()
    x = torch.randn(1, 3, 40, 56)
    torch.testing.assert_close(loaded(x), source(x))


def test_scans_are_one_for_each_block_or_one_for_all():
    model = create_model("test_localvmamba", scans="cross")
    assert {block.mixer.scan for stage in model.stages for block in stage.blocks} == {"cross"}
    with pytest.raises(ValueError, match="scans has 2 names, but needs one for each of the 5 blocks"):
        create_model("test_localvmamba", scans=["cross", "bidi"])


def test_cfgs_say_where_weights_come_from():
    urls = {name: cfg.default.url for name, cfg in default_cfgs.items() if cfg.default.url}
    assert list(urls) == ["localvmamba_small"]
    assert urls["localvmamba_small"].startswith("https://github.com/hunto/LocalMamba/releases/")
