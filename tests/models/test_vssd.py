"""VSSD against the official implementation, and what its mixer computes."""
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import SSD2D, NonCausalSSD
from vmamba.models.vssd import checkpoint_filter_fn, default_cfgs
from vmamba.ops import ssd_scan
from vmamba.scans import scan_order


def our_module(feature):
    stage = re.fullmatch(r"stage(\d)(?:\.block(\d))?(\.attn)?", feature)
    if stage is None:
        return feature
    block = f".blocks.{int(stage[2]) - 1}" if stage[2] else ""
    return f"stages.{int(stage[1]) - 1}{block}{'.mixer' if stage[3] else ''}"


@pytest.mark.parametrize(("fixture", "kwargs"), [
    ("vssd_tiny_224", {}), ("vssd_mini_ngroups2", {"depths": (1, 1, 1, 1), "num_groups": 2})])
def test_matches_the_official_model(fixture, kwargs):
    meta, tensors = load_golden(f"vssd/{fixture}.json")
    model = build_official(meta, "vssd_tiny", checkpoint_filter_fn, **kwargs)
    assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    # sums over thousands of tokens without a normaliser: the reference itself is off its float64 values by 1e-4 of the
    # scale of stage 3, and so is ours
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]}, atol=1e-4)


def test_mixer_without_an_order_is_attention_without_a_softmax():
    """Written as a matrix of L x L weights, one head after the other; the gate has no activation."""
    mixer = NonCausalSSD(12, 4, d_state=5, num_groups=2).double()
    with torch.no_grad():
        mixer.dt_bias.add_(2)
        mixer.D.normal_()
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    z, u, dt = mixer.in_proj(x).split([24, 24 + 2 * 2 * 5, 4], dim=-1)
    u, B, C = F.silu(mixer.conv(u)).flatten(1, 2).split([24, 10, 10], dim=-1)
    weight = F.softplus(dt + mixer.dt_bias).flatten(1, 2) * mixer.A_log.exp()
    heads = []
    for head in range(4):
        own, group = slice(6 * head, 6 * head + 6), slice(5 * (head % 2), 5 * (head % 2) + 5)
        pairs = C[..., group] @ B[..., group].mT * weight[..., head].unsqueeze(1)
        heads.append(pairs @ u[..., own] + mixer.D[head] * u[..., own])
    expected = mixer.out_proj(mixer.norm(torch.cat(heads, dim=-1)) * z.flatten(1, 2)).view(x.shape)
    torch.testing.assert_close(mixer(x), expected)


def test_order_of_the_tokens_does_not_matter():
    """But for the convolution, which is made to look at its own pixel only."""
    mixer = NonCausalSSD(12, 4, d_state=5)
    with torch.no_grad():
        mixer.conv.weight.mul_(torch.zeros(3, 3).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(1.0)))
    x = torch.randn(2, 3, 5, 12)
    order = torch.randperm(15)
    shuffled = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(mixer(shuffled).flatten(1, 2), mixer(x).flatten(1, 2)[:, order])


def test_scan_of_a_map_is_a_scan_along_each_walk():
    mixer = SSD2D(32, d_state=5).double()
    x = torch.randn(2, 3, 5, 32, dtype=torch.float64)
    u = F.gelu(mixer.conv(mixer.in_proj(x))).flatten(1, 2)
    parts = mixer.x_proj(u).unflatten(-1, (4, -1))
    index = scan_order("cross", (3, 5)).index.long()
    total = torch.zeros_like(u)
    for k in range(4):
        dt, B, C = parts[:, index[k], k].split([2, 5, 5], dim=-1)
        y = ssd_scan(
            u[:, index[k]].unflatten(-1, (2, 16)), dt, -mixer.A_log[k].exp(), B.unsqueeze(2), C.unsqueeze(2),
            mixer.D[k].view(2, 16), mixer.dt_bias[k], True, backend="reference")
        total[:, index[k]] += y.flatten(2)
    torch.testing.assert_close(mixer(x), mixer.out_proj(mixer.out_norm(total)).view(x.shape))


def official(model):
    """A state dict under the names of the official implementation."""
    renames = (
        (r"^stem\.", "patch_embed."), (r"^head\.fc\.", "head."), (r"\.mixer\.attn\.qkv\.", ".attn.to_qkv."),
        (r"\.mixer\.attn\.proj\.", ".attn.to_out."), (r"\.mixer\.conv\.", ".attn.conv2d."), (r"\.mixer\.", ".attn."),
        (r"\.downsample\.expand\.", ".downsample.conv.0.conv."),
        (r"\.downsample\.depthwise\.", ".downsample.conv.1.conv."), (r"\.downsample\.project\.", ".downsample.conv.2."),
        (r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"), (r"^stages\.", "layers."))
    state = {}
    for key, value in model.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        state[key] = value
    return state


def test_an_official_file_loads(tmp_path):
    source = create_model("test_vssd").eval()
    torch.save({"model": official(source)}, tmp_path / "vssd.pth")
    overlay = {"file": str(tmp_path / "vssd.pth")}
    loaded = create_model("test_vssd", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 40, 56)
    torch.testing.assert_close(loaded(x), source(x))


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        url = cfg.default.url or ""
        assert url.startswith("https://huggingface.co/YuhengSSS/VSSD/") == (not name.startswith("test_"))
