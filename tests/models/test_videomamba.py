"""VideoMamba: parity, orders of clips against their tables, images as clips, and resizing in space and time."""
import argparse

import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model
from timm.optim import create_optimizer_v2, param_groups_weight_decay

import vmamba  # noqa: F401
from tests.goldens import GOLDENS, fill
from tests.support.parity import load_golden
from vmamba.layers import VideoMixer
from vmamba.models.videomamba import checkpoint_filter_fn, default_cfgs
from vmamba.models.vim import BOTH_PATHS
from vmamba.ops import selective_scan
from vmamba.scans import VIDEO_SCANS, VIDEO_SCHEDULES, video_order, video_schedule

BOTH_WAYS = [name for name in VIDEO_SCANS if len(VIDEO_SCANS[name]) > 1]
DIMS = {192: "tiny", 384: "small", 576: "middle", 768: "base"}


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "videomamba").glob("*.json")))
def test_matches_the_official_model(fixture):
    meta, tensors = load_golden(f"videomamba/{fixture}.json")
    config = meta["config"]
    model = create_model(
        f"videomamba_{DIMS[config['embed_dim']]}", num_classes=config["num_classes"], img_size=config["img_size"],
        num_frames=config["num_frames"]).eval()
    model.load_state_dict(checkpoint_filter_fn(dict(fill.fill_state_dict(meta["entries"])), model))
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    taps = {}
    tapped = sorted({int(key.removeprefix("layer").partition("_")[0]) for key in tensors if key.startswith("layer")})
    for i in tapped:
        model.blocks[i].register_forward_pre_hook(
            lambda m, inputs, i=i: taps.__setitem__(f"layer{i}_residual_s13", inputs[0]))
        model.blocks[i].mixer.register_forward_hook(
            lambda m, inputs, out, i=i: taps.__setitem__(f"layer{i}_mixer_out_s13", out))
    clip = fill.seeded_randn(meta["input"]["name"], meta["input"]["shape"])
    with torch.no_grad():
        logits = model(clip)
        taps["tokens_in_s13"] = model.embed(clip)[0]
        taps["features_cls"] = model.forward_head(model.forward_features(clip), pre_logits=True)
    assert taps.keys() | {"logits"} == tensors.keys()
    torch.testing.assert_close(logits, tensors["logits"], atol=2e-5, rtol=0)
    for name, tap in taps.items():
        tap = tap[:, ::13] if name.endswith("_s13") else tap
        scale = max(1.0, tensors[name].abs().max().item())
        torch.testing.assert_close(tap, tensors[name], atol=2e-5 * scale, rtol=0, msg=lambda m, name=name: name + m)


@pytest.mark.parametrize("scan", BOTH_WAYS)
def test_mixer_walks_its_order(scan):
    """Against the algorithm as written, along the table of the order with its class token."""
    mixer = VideoMixer(24, scan, d_state=3).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    order = video_order(scan, (3, 2, 2), class_token=True)
    x = torch.randn(2, 13, 24, dtype=torch.float64)
    expected = 0
    for k, (walk, back) in enumerate(zip(order.index.long(), order.inverse.long(), strict=True)):
        u, z = mixer.in_proj(x[:, walk]).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(F.conv1d(u, mixer.conv_weight[k].unsqueeze(1), mixer.conv_bias[k], padding=3, groups=48)[..., :13])
        r, B, C = F.linear(u.transpose(1, 2), mixer.x_proj[k]).transpose(1, 2).split([mixer.dt_rank, 3, 3], dim=1)
        delta = F.linear(r.transpose(1, 2), mixer.dt_weight[k]).transpose(1, 2)
        y = selective_scan(
            u, delta, -mixer.A_log[k].exp(), B, C, mixer.D[k], z, mixer.dt_bias[k], delta_softplus=True,
            backend="reference").transpose(1, 2)
        expected = expected + y[:, back]
    torch.testing.assert_close(mixer(x, 3), mixer.out_proj(expected))


@pytest.mark.parametrize("scan", VIDEO_SCHEDULES)
def test_mixtures_over_the_blocks(scan):
    """Blocks walk as scheduled, and weights of one order fit them."""
    model = create_model("test_videomamba", scan=scan).eval()
    model.load_state_dict(create_model("test_videomamba").state_dict())
    assert [block.mixer.temporal for block in model.blocks] == [
        [name.startswith("temporal")] * 2 for name in video_schedule(scan, len(model.blocks))]
    assert model(torch.randn(1, 3, 3, 32, 32)).isfinite().all()


def test_mixer_needs_both_ways():
    with pytest.raises(ValueError, match="'spatial_first' walks forwards only, but the mixer needs one that walks bo"):
        VideoMixer(8, "spatial_first")
    with pytest.raises(ValueError, match="unknown order of clips 'cross'"):
        create_model("test_videomamba", scan="cross")


def official(model):
    """The state dict of a video model under the names and shapes of the official implementation."""
    names = {"norm.weight": "norm_f.weight", "temporal_embed.weight": "temporal_pos_embedding"}
    out = {}
    for key, value in model.state_dict().items():
        mixer, _, leaf = key.replace("blocks.", "layers.").partition(".mixer.")
        if leaf in BOTH_PATHS:
            for part, name in zip(value, BOTH_PATHS[leaf], strict=True):
                out[f"{mixer}.mixer.{name}"] = part.unsqueeze(1).clone() if leaf == "conv_weight" else part.clone()
        else:
            out[names.get(key, key.replace("blocks.", "layers."))] = value
    out["patch_embed.proj.weight"] = out["patch_embed.proj.weight"].unsqueeze(2)
    return out


def trained_looking(**kwargs):
    model = create_model("test_videomamba", **kwargs).eval()
    torch.nn.init.normal_(model.temporal_embed.weight, std=0.5)
    return model


def test_official_files_of_clips_and_of_images_load(tmp_path):
    source = trained_looking()
    state = official(source)
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "video.pth")
    overlay = {"file": str(tmp_path / "video.pth")}
    clip = torch.randn(1, 3, 4, 96, 96)
    loaded = create_model("test_videomamba", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(loaded(clip), source(clip))
    del state["temporal_pos_embedding"]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].squeeze(2)
    images = create_model("test_videomamba", pretrained=True, pretrained_cfg_overlay={"state_dict": state}).eval()
    assert not images.temporal_embed.weight.any()
    assert torch.equal(images.blocks[0].mixer.A_log, source.blocks[0].mixer.A_log)
    del state["layers.1.mixer.conv1d_b.bias"]
    with pytest.raises(RuntimeError, match=r"1 missing: blocks\.1\.mixer\.conv_bias; 1 unexpected: .*conv1d\.bias"):
        checkpoint_filter_fn(state, images)


def test_a_checkpoint_of_other_frames_and_size_is_resized():
    source = trained_looking()
    overlay = {"state_dict": official(source)}
    loaded = create_model(
        "test_videomamba", pretrained=True, pretrained_cfg_overlay=overlay, img_size=(64, 112), num_frames=7).eval()
    assert loaded.pos_embed.shape == (1, 29, 48)
    assert loaded.temporal_embed.weight.shape == (1, 7, 48)
    clip = torch.randn(1, 3, 7, 64, 112)
    with torch.no_grad():
        torch.testing.assert_close(loaded(clip), source(clip))
        torch.testing.assert_close(loaded.pos_embed[:, :1], source.pos_embed[:, :1])


def test_frames_are_interpolated_linearly():
    model = trained_looking(num_frames=2)
    first, second = model.temporal_embed.weight[0]
    resized = model.temporal_embed(4)[0]
    expected = torch.stack([first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second, second])
    torch.testing.assert_close(resized, expected)
    assert torch.equal(model.temporal_embed(2), model.temporal_embed.weight)


def test_an_image_is_a_clip_of_one_frame():
    model = trained_looking()
    x = torch.randn(2, 3, 64, 48)
    assert torch.equal(model(x), model(x.unsqueeze(2)))
    frames = torch.randn(2, 3, 4, 64, 48)
    assert (model(frames) - model(frames.flip(2))).abs().max() > 1e-3  # time matters


@pytest.mark.parametrize("shape", [(2, 3, 3, 64, 48), (1, 3, 1, 16, 16), (2, 3, 64, 48)])
def test_tokens_and_maps(shape):
    model = trained_looking()
    x = torch.randn(shape)
    frames = shape[2] if len(shape) == 5 else 1
    grid = (shape[-2] // 16, shape[-1] // 16)
    tokens = model.forward_features(x)
    assert tokens.shape == (shape[0], 1 + frames * grid[0] * grid[1], 48)
    final, maps = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(final, tokens)
    assert maps[-1].shape == (shape[0], 48, *((frames,) if len(shape) == 5 else ()), *grid)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), tokens[:, 1:])
    pairs = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, intermediates_only=True)
    torch.testing.assert_close(pairs[-1][1], tokens[:, :1])
    listed = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(listed[0], tokens[:, 1:])


def test_features_only():
    model = create_model("test_videomamba", features_only=True, out_indices=(0, 2))
    assert [m.shape for m in model(torch.randn(1, 3, 2, 64, 48))] == [(1, 48, 2, 4, 3)] * 2
    assert [m.shape for m in model(torch.randn(1, 3, 64, 48))] == [(1, 48, 4, 3)] * 2


def test_heads():
    model = create_model("test_videomamba", in_chans=5, num_classes=7)
    x = torch.randn(1, 5, 2, 32, 48)
    assert model(x).shape == (1, 7)
    tokens = model.forward_features(x)
    for pool, expected in (("token", tokens[:, 0]), ("avg", tokens[:, 1:].mean(1)), ("", tokens)):
        model.reset_classifier(0, pool)
        torch.testing.assert_close(model.forward_head(tokens), expected)


def test_resizing_keeps_what_clips_of_that_size_gave():
    model = trained_looking()
    x = torch.randn(1, 3, 2, 64, 112)
    with torch.no_grad():
        before = model(x)
        model.set_input_size((64, 112))
        assert model.pos_embed.shape == (1, 29, 48)
        torch.testing.assert_close(model(x), before)


def test_optimizer_groups():
    model = create_model("test_videomamba")
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for key in ("temporal_embed.weight", "pos_embed", "cls_token"):
        assert id(model.get_parameter(key)) not in decayed
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale[id(model.temporal_embed.weight)] == scale[id(model.pos_embed)] < scale[id(model.head.weight)]


def test_initialisation_on_meta_then_empty_then_init_weights():
    model = create_model("test_videomamba", device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not model.temporal_embed.weight.any()


@pytest.mark.parametrize("scan", ["spatial_first_bidi", "spatiotemporal_v2"])
def test_gradient_checkpointing_gives_the_same_gradients(scan):
    model = create_model("test_videomamba", scan=scan)
    x = torch.randn(1, 3, 2, 32, 32)
    grads = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_bfloat16_stays_close():
    model = trained_looking()
    x = torch.randn(2, 3, 2, 64, 64)
    with torch.no_grad():
        expected = model(x)
        low = model.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.15 * expected.std()


@pytest.mark.parametrize("scan", ["spatial_first_bidi", "spatiotemporal_v1"])
def test_export_with_dynamic_clips(scan):
    model = trained_looking(scan=scan)
    dims = {0: torch.export.Dim("batch", max=16), 2: torch.export.Dim("frames", min=2, max=64),
            3: torch.export.Dim("height", min=48, max=512), 4: torch.export.Dim("width", min=48, max=512)}
    program = torch.export.export(model, (torch.randn(2, 3, 4, 64, 96),), dynamic_shapes=(dims,))
    for shape in ((2, 3, 4, 64, 96), (1, 3, 3, 97, 131)):
        x = torch.randn(*shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), model(x))


def test_compiles_as_one_graph():
    model = create_model("test_videomamba", scan="spatiotemporal_v2")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 2, 32, 64)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("scan", ["spatial_first_bidi", "spatiotemporal_v2"])
def test_torchscript_save_and_load(scan, tmp_path):
    model = trained_looking(scan=scan)
    torch.jit.script(model).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for shape in ((1, 3, 4, 96, 96), (2, 3, 45, 70)):
        x = torch.randn(*shape)
        torch.testing.assert_close(loaded(x), model(x))


def test_tags_of_clips():
    cfg = default_cfgs["videomamba_middle"].cfgs["k400_mask_f64_384"]
    assert cfg.url.endswith("/videomamba_m16_k400_mask_ft_f64_res224to384.pth")
    assert (cfg.num_classes, cfg.input_size) == (400, (3, 384, 384))
    assert cfg.notes == ("Kinetics-400 top-1 85.0 % (published)",)
    assert len(default_cfgs["videomamba_tiny"].cfgs) == 3 + 12


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        released = name in ("videomamba_tiny", "videomamba_small", "videomamba_middle")
        for entry in cfg.cfgs.values():
            assert bool(entry.has_weights) == released
            assert (entry.url or "").startswith("https://huggingface.co/OpenGVLab/VideoMamba/") == released
