import re

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.goldens import GOLDENS
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import ContinuousMixer
from vmamba.models.plainmamba import checkpoint_filter_fn, default_cfgs
from vmamba.ops import selective_scan
from vmamba.scans import scan_order, step_moves


def official(model):
    """The state dict of a PlainMamba under the names of the official implementation."""
    renames = (
        (r"^blocks\.", "layers."), (r"\.mixer\.", ".mamba."), (r"\.mamba\.conv\.", ".mamba.conv2d."),
        (r"\.dt_(weight|bias)$", r".dt_proj.\1"), (r"\.direction_B$", ".direction_Bs"), (r"\.dw\.conv\.", ".dw.0."),
        (r"\.dw\.norm\.", ".dw.1."), (r"^norm\.", "ln1."), (r"embed\.proj\.", "embed.projection."),
        (r"\.stem\.conv\.", ".stem.0."), (r"\.stem\.norm\.", ".stem.1."),
        (r"\.convs\.(\d+)\.conv\.", lambda m: f".convs.{3 * int(m[1])}."),
        (r"\.convs\.(\d+)\.norm\.", lambda m: f".convs.{3 * int(m[1]) + 1}."))
    out = {}
    for key, value in model.state_dict().items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        out[re.sub(r"^head\.", "head.fc.", key) if key.startswith("head.") else f"backbone.{key}"] = value
    return out


def our_module(feature):
    feature = feature.removeprefix("backbone.").replace("patch_embed.0", "patch_embed")
    return feature.replace("layers.", "blocks.").replace(".mamba", ".mixer")


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "plainmamba").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"plainmamba/{fixture}.json")
    model = build_official(meta, fixture, checkpoint_filter_fn)
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})


@pytest.mark.parametrize("as_released", [True, False])
def test_mixer_is_the_sum_of_four_scans(as_released):
    """Against the algorithm written out: each path gathered, scanned and put back."""
    mixer = ContinuousMixer(24, d_state=3, d_conv=3, as_released=as_released).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64)
    order = scan_order("snake4", (3, 5))
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    u = F.silu(mixer.conv(u)).flatten(1, 2)
    r, B, C = mixer.x_proj(u).split([mixer.dt_rank, 3, 3], dim=-1)
    delta = F.linear(r, mixer.dt_weight, mixer.dt_bias if as_released else None)
    total = torch.zeros_like(u)
    for path, moves in zip(order.index.long(), step_moves(order), strict=True):
        other = torch.arange(15) if as_released else path
        y = selective_scan(
            u[:, path].mT, delta[:, other].mT, -mixer.A_log.exp(), (B[:, other] + mixer.direction_B[moves]).mT,
            C[:, other].mT, mixer.D, None, mixer.dt_bias, delta_softplus=True, backend="reference").mT
        total[:, path] += y
    expected = mixer.out_proj(total.view(z.shape) * F.silu(z))
    torch.testing.assert_close(mixer(x), expected)
    (mixer(x) - expected).sum().backward()
    assert all(torch.allclose(p.grad, torch.zeros_like(p), atol=1e-9) for p in mixer.parameters())


def test_the_paper_s_model_takes_the_same_weights():
    released, paper = create_model("test_plainmamba"), create_model("test_plainmamba", as_released=False)
    paper.load_state_dict(released.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(released.eval()(x), paper.eval()(x))


def test_an_official_file_loads(tmp_path):
    source = create_model("test_plainmamba").eval()
    torch.save({"meta": {"epoch": 300}, "state_dict": official(source)}, tmp_path / "l1.pth")
    overlay = {"file": str(tmp_path / "l1.pth")}
    x = torch.randn(1, 3, 96, 96)
    loaded = create_model("test_plainmamba", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(loaded(x), source(x))
    other = create_model(
        "test_plainmamba", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, img_size=64).eval()
    assert other(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    torch.testing.assert_close(other.blocks.state_dict(), source.blocks.state_dict())


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        released = name.startswith("plainmamba_")
        assert (cfg.default.url or "").startswith("https://huggingface.co/ChenhongyiYang/") == released
