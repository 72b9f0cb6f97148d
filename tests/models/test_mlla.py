"""MLLA against the official implementation, and what its mixer computes."""
import math
import re

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.goldens import GOLDENS
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import LinearAttention
from vmamba.models.mlla import checkpoint_filter_fn


def our_module(feature):
    stage = re.fullmatch(r"stage(\d)(?:\.block(\d))?(\.attn)?", feature)
    if stage is None:
        return feature
    block = f".blocks.{int(stage[2]) - 1}" if stage[2] else ""
    return f"stages.{int(stage[1]) - 1}{block}{'.mixer.attn' if stage[3] else ''}"


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "mlla").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"mlla/{fixture}.json")
    model = build_official(meta, fixture.rpartition("_")[0], checkpoint_filter_fn)
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})


def test_attention_is_the_sum_over_all_pairs_of_tokens():
    """Written as attention with a matrix of L x L weights, one head and one pair of channels after the other."""
    attn = LinearAttention(16, 2).double()
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    positions = torch.tensor([(i, j) for i in range(3) for j in range(5)], dtype=torch.float64)
    angles = torch.cat([positions[:, axis:axis + 1] * 10000 ** (-torch.arange(4) / 4) for axis in (0, 1)], dim=1)
    tokens = x.flatten(1, 2)
    q, k = (F.elu(attn.qk(tokens)) + 1).chunk(2, dim=-1)
    expected = torch.empty_like(tokens)
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        weight = 0
        for pair in range(4 * head, 4 * head + 4):
            two = slice(2 * pair, 2 * pair + 2)
            turned = [torch.view_as_complex(t[..., two].contiguous()) * torch.polar(torch.ones(15).double(),
                      angles[:, pair]) for t in (q, k)]
            weight = weight + (turned[0].unsqueeze(2) * turned[1].unsqueeze(1).conj()).real
        total = (q[..., own] * k[..., own].mean(1, keepdim=True)).sum(-1, keepdim=True) + 1e-6
        expected[..., own] = weight @ tokens[..., own] / 15 / total
    expected = expected.view(x.shape) + attn.lepe(x)
    # the angles are float32, and so large as 4 radians
    torch.testing.assert_close(attn(x), expected, atol=1e-6 * math.pi, rtol=1e-6)


def official(model):
    """A state dict under the names of the official implementation."""
    renames = (
        (r"^stem\.", "patch_embed."), (r"^head\.fc\.", "head."), (r"\.mixer\.gate_proj\.", ".act_proj."),
        (r"\.mixer\.conv\.", ".dwc."), (r"\.mixer\.", "."), (r"\.downsample\.expand\.", ".downsample.conv.0.conv."),
        (r"\.downsample\.depthwise\.", ".downsample.conv.1.conv."), (r"\.downsample\.project\.", ".downsample.conv.2."),
        (r"^stages\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"), (r"^stages\.", "layers."))
    state = {}
    for key, value in model.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        state[key] = value
    return state | {"layers.0.blocks.0.attn.rope.rotations": torch.ones(5, 5, 8, 2)}


def test_an_official_file_loads(tmp_path):
    source = create_model("test_mlla").eval()
    torch.save({"model": official(source)}, tmp_path / "mlla.pth")
    overlay = {"file": str(tmp_path / "mlla.pth")}
    loaded = create_model("test_mlla", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 40, 56)
    torch.testing.assert_close(loaded(x), source(x))


def test_an_official_backbone_loads():
    """That of a detector has a norm for each map and neither classifier nor last norm."""
    source = create_model("test_mlla").eval()
    state = {k: v for k, v in official(source).items() if not k.startswith(("norm.", "head."))}
    state |= {f"norm{i}.weight": torch.ones(4) for i in range(4)}
    state = {f"backbone.{k}": v for k, v in state.items()}
    loaded = create_model(
        "test_mlla", features_only=True, pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()
    x = torch.randn(1, 3, 40, 56)
    for ours, theirs in zip(loaded(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padding_of_odd_maps_comes_before_the_first_convolution():
    """As in the authors' detectors: padded pixels become activations of the bias, and reach the last row and column."""
    padded = create_model("test_mlla", pad_odd=True).eval().stages[1].downsample
    plain = create_model("test_mlla").eval().stages[1].downsample
    with torch.no_grad():
        padded.expand.bias.fill_(0.5)
    plain.load_state_dict(padded.state_dict())
    x = torch.randn(1, 7, 5, 16)
    torch.testing.assert_close(padded(x), plain(F.pad(x, (0, 0, 0, 1, 0, 1))))
    torch.testing.assert_close(padded(x)[:, :3, :2], plain(x)[:, :3, :2])
    assert ((padded(x) - plain(x)).abs()[:, 3].amax(-1) > 1e-3).all()
    even = torch.randn(1, 6, 4, 16)
    assert torch.equal(padded(even), plain(even))
