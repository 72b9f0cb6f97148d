import re

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.goldens import GOLDENS, fill
from tests.support.parity import build_official, load_golden, summary
from vmamba.layers import LocalPathMixer
from vmamba.models.localvim import checkpoint_filter_fn, default_cfgs
from vmamba.ops import selective_scan
from vmamba.scans import scan_order


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "localvim").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"localvim/{fixture}.json")
    scans = ["+".join(directions) for directions in meta["config"]["directions"]]
    name = fixture.replace("local_", "local").replace("middle_cls_token", "midcls")
    model = build_official(meta, name, checkpoint_filter_fn)
    assert [block.mixer.scan.replace("_token", "") for block in model.blocks] == scans
    taps = {}
    for i, block in enumerate(model.blocks):
        block.mixer.register_forward_hook(lambda m, inputs, out, i=i: taps.__setitem__(f"layers.{i}.0", out))
    with torch.no_grad():
        logits = model(fill.seeded_randn(meta["input"]["name"], meta["input"]["shape"]))
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=0)
    for name, tap in taps.items():
        scale = max(1.0, tap.abs().max().item())  # the same relative bound, at each map's own scale
        torch.testing.assert_close(summary(tap), tensors[f"feat.{name}"], atol=2e-5 * scale, rtol=0)


@pytest.mark.parametrize("scan", ["h+v_flip+w2+w2_flip", "h+v", "h_flip_token+w2_token"])
def test_mixer_is_the_weighed_sum_of_mamba_paths(scan):
    """Against the algorithm as written: each path gathered, zero tokens at padding slots, convolved and scanned."""
    mixer = LocalPathMixer(16, scan, d_state=3).double()
    order = scan_order(scan, (3, 5))
    x = torch.randn(2, order.num_tokens, 16, dtype=torch.float64)
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    total = 0
    for k, path in enumerate(order.index.long()):
        v, gate = (F.pad(t, (0, 0, 0, 1))[:, path] for t in (u, z))  # -1 takes the zeros
        T = len(path)
        v = F.silu(F.conv1d(v.mT, mixer.conv_weight[k].unsqueeze(1), mixer.conv_bias[k], padding=3, groups=32)[..., :T])
        r, B, C = F.linear(v.mT, mixer.x_proj[k]).mT.split([mixer.dt_rank, 3, 3], dim=1)
        y = selective_scan(
            v, (mixer.dt_weight[k] @ r), -mixer.A_log[k].exp(), B, C, mixer.D[k], gate.mT, mixer.dt_bias[k],
            delta_softplus=True, backend="reference").mT
        total = total + mixer.attention(y[:, order.inverse[k].long()])
    torch.testing.assert_close(mixer(x, 3, 5), mixer.out_proj(total))


def test_class_token_is_at_the_middle_step_of_every_walk():
    model = create_model("test_localvim_midcls", scans="h+h_flip+v+v_flip")
    assert model.blocks[0].mixer.scan == "h_token+h_flip_token+v_token+v_flip_token"
    assert model.global_pool == "token"


def test_without_a_class_token_the_stream_is_rotated():
    x = torch.randn(1, 6, 48)
    for name, rotated in (("test_localvim", True), ("test_localvim_midcls", False)):
        block = create_model(name).blocks[0]
        torch.nn.init.zeros_(block.mixer.out_proj.weight)
        tokens = F.pad(x, (0, 0, 0, int(not rotated)))
        y = block(tokens, 2, 3)
        assert torch.equal(y[:, 0], x[:, 0])  # the corner has angle 0
        assert torch.equal(y, tokens) != rotated
        torch.testing.assert_close(y.norm(dim=-1), tokens.norm(dim=-1))


@pytest.mark.parametrize("name", ["test_localvim", "test_localvim_midcls"])
def test_an_official_file_loads(name, tmp_path):
    source = create_model(name).eval()
    renames = (
        (r"^blocks\.", "layers."), (r"^norm\.", "norm_f."), (r"\.attention\.", ".attn."),
        (r"\.attn\.reduce\.", ".attn.global_reduce."), (r"\.attn\.expand\.", ".attn.channel_select."))
    stacks = {
        "conv_weight": "conv1d_{}.weight", "conv_bias": "conv1d_{}.bias", "x_proj": "x_proj_{}.weight",
        "dt_weight": "dt_proj_{}.weight", "dt_bias": "dt_proj_{}.bias", "A_log": "A_log_{}", "D": "D_{}"}
    rotated = source.cls_token is None
    state = {"rope.freqs_cos": torch.ones(36, 48), "rope.freqs_sin": torch.zeros(36, 48)} if rotated else {}
    for key, value in source.state_dict().items():
        for pattern, official in renames:
            key = re.sub(pattern, official, key)
        stem, _, leaf = key.rpartition(".")
        if leaf in stacks:
            for k in range(4):
                part = value[k].unsqueeze(1) if leaf == "conv_weight" else value[k]
                state[f"{stem}.{stacks[leaf].format(k)}"] = part.clone()
        else:
            state[key] = value
    torch.save({"state_dict": state}, tmp_path / "local.ckpt")
    loaded = create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "local.ckpt")}).eval()
    x = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(loaded(x), source(x))


def test_scans_are_one_for_each_block_or_one_for_all():
    assert {b.mixer.scan for b in create_model("test_localvim", scans="cross").blocks} == {"cross"}
    with pytest.raises(ValueError, match="scans has 2 names, but needs one for each of the 3 blocks"):
        create_model("test_localvim", scans=["cross", "bidi"])


def test_cfgs_say_where_weights_come_from():
    urls = {name: cfg.default.url for name, cfg in default_cfgs.items() if cfg.default.url}
    assert list(urls) == ["localvim_tiny", "localvim_tiny_midcls"]
    assert all(url.startswith("https://github.com/hunto/LocalMamba/releases/") for url in urls.values())
