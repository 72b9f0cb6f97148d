import argparse

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.goldens import GOLDENS, fill
from tests.support.parity import build_official, load_golden, summary
from vmamba.layers import BidirectionalMixer
from vmamba.models.vim import checkpoint_filter_fn, default_cfgs
from vmamba.ops import selective_scan

OFFICIAL = {  # names in a mixer of both paths' parameters, and in which of our stacks they are
    "conv1d.weight": "conv_weight", "conv1d.bias": "conv_bias", "x_proj.weight": "x_proj",
    "dt_proj.weight": "dt_weight", "dt_proj.bias": "dt_bias", "A_log": "A_log", "D": "D",
}


def backward_name(name):
    return "A_b_log" if name == "A_log" else "D_b" if name == "D" else name.replace(".", "_b.")


def official(model):
    """The state dict of a Vim under the names and shapes of the official implementation."""
    stacks = {stack: name for name, stack in OFFICIAL.items()}
    out = {}
    for key, value in model.state_dict().items():
        mixer, _, leaf = key.partition(".mixer.")
        key = key.replace("blocks.", "layers.").replace("norm.", "norm_f.") if key.startswith("norm.") else key
        key = key.replace("blocks.", "layers.")
        if leaf in stacks:
            for k, name in enumerate((stacks[leaf], backward_name(stacks[leaf]))):
                part = value[k].unsqueeze(1) if leaf == "conv_weight" else value[k]
                out[f"{mixer.replace('blocks.', 'layers.')}.mixer.{name}"] = part.clone()
        else:
            out[key] = value
    return out


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "vim").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"vim/{fixture}.json")
    size = next(s for s, dim in (("tiny", 192), ("small", 384), ("base", 768)) if dim == meta["config"]["embed_dim"])
    stride = "_stride8" if meta["config"]["stride"] == 8 else ""
    model = build_official(meta, f"vim_{size}_patch16{stride}_224", checkpoint_filter_fn)
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]

    taps = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, inputs, out, i=i: taps.__setitem__(f"layers.{i}.1", inputs[0]))
        block.mixer.register_forward_hook(lambda m, inputs, out, i=i: taps.__setitem__(f"layers.{i}.0", out))
    with torch.no_grad():
        logits = model(fill.seeded_randn(meta["input"]["name"], meta["input"]["shape"]))
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=0)
    for name, tap in taps.items():
        scale = max(1.0, tap.abs().max().item())  # the same relative bound, at each map's own scale
        torch.testing.assert_close(summary(tap), tensors[f"feat.{name}"], atol=2e-5 * scale, rtol=0)


def test_mixer_is_the_mean_of_two_gated_mamba_paths():
    """Against the algorithm as written: each path alone, the second on the flipped sequence."""
    mixer = BidirectionalMixer(24, d_state=3).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    expected = 0
    for k in range(2):
        u, z = mixer.in_proj(x.flip(1) if k else x).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(F.conv1d(u, mixer.conv_weight[k].unsqueeze(1), mixer.conv_bias[k], padding=3, groups=48)[..., :11])
        r, B, C = F.linear(u.transpose(1, 2), mixer.x_proj[k]).transpose(1, 2).split([mixer.dt_rank, 3, 3], dim=1)
        delta = F.linear(r.transpose(1, 2), mixer.dt_weight[k]).transpose(1, 2)
        y = selective_scan(
            u, delta, -mixer.A_log[k].exp(), B, C, mixer.D[k], z, mixer.dt_bias[k], delta_softplus=True,
            backend="reference").transpose(1, 2)
        expected = expected + 0.5 * (y.flip(1) if k else y)
    torch.testing.assert_close(mixer(x), mixer.out_proj(expected))


def test_the_residual_stream_stays_float32():
    model = create_model("test_vim").bfloat16().eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
        block.mixer.register_forward_hook(lambda m, inputs, out: seen.append((inputs[0].dtype, out.dtype)))
    assert model.forward_features(torch.randn(1, 3, 32, 32).bfloat16()).dtype == torch.bfloat16
    assert set(seen) == {(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)}


def test_an_official_file_loads(tmp_path):
    source = create_model("test_vim").eval()
    torch.save({"model": official(source), "args": argparse.Namespace(lr=0.1), "epoch": 3}, tmp_path / "vim.pth")
    overlay = {"file": str(tmp_path / "vim.pth")}
    x = torch.randn(1, 3, 96, 96)
    loaded = create_model("test_vim", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(loaded(x), source(x))
    other = create_model(
        "test_vim", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1, img_size=64).eval()
    assert other(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    torch.testing.assert_close(other.blocks.state_dict(), source.blocks.state_dict())


def test_an_incomplete_file_is_refused_by_name():
    model = create_model("test_vim")
    state = official(model)
    del state["layers.1.mixer.conv1d_b.bias"]
    with pytest.raises(RuntimeError, match=r"1 missing: blocks\.1\.mixer\.conv_bias; 1 unexpected: .*conv1d\.bias"):
        checkpoint_filter_fn(state, model)


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        cfg = cfg.default
        assert bool(cfg.has_weights) == name.startswith("vim_")
        assert (cfg.url or "").startswith("https://huggingface.co/hustvl/Vim-") == name.startswith("vim_")
