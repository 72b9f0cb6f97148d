"""A2Mamba against the official implementation, and neighbourhood attention against its definition."""
import re

import pytest
import torch
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers.neighborhood import neighborhood_apply, neighborhood_weights, neighborhood_windows
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


@pytest.mark.parametrize(("extent", "window"), [(1, 3), (2, 3), (3, 3), (6, 3), (7, 3), (20, 3), (13, 5), (56, 11)])
@pytest.mark.parametrize("dilated", [False, True])
def test_windows_along_an_axis(extent, window, dilated):
    """Written out: the classes of the dilation one after the other, the window moved inwards at their ends."""
    dilation = max(1, min(extent // window, window)) if dilated else 1
    places, distances, valid = neighborhood_windows(torch.zeros(1), extent, window, dilated)
    for i in range(extent):
        own = list(range(i % dilation, extent, dilation))
        rank = own.index(i)
        start = max(0, min(rank - window // 2, len(own) - window))
        expected = own[start:start + window]
        assert places[i][valid[i]].tolist() == expected
        assert distances[i][valid[i]].tolist() == [own.index(j) - rank + window - 1 for j in expected]
        assert i in expected


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("size", [(7, 10), (2, 4)])
def test_attention_is_that_of_a_masked_matrix(size, dilated):
    H, W = size
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, H, W, 4, generator=g, dtype=torch.float64).requires_grad_()
    bias = torch.randn(2, 5, 5, generator=g, dtype=torch.float64)
    rows, columns = (neighborhood_windows(q, extent, 3, dilated) for extent in size)
    mask = torch.full((2, H * W, H * W), float("-inf"), dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            for a in range(3):
                for b in range(3):
                    if rows[2][i, a] and columns[2][j, b]:
                        there = rows[0][i, a] * W + columns[0][j, b]
                        mask[:, i * W + j, there] = bias[:, rows[1][i, a], columns[1][j, b]]
    expected = ((q.flatten(2, 3) @ k.flatten(2, 3).mT + mask).softmax(-1) @ v.flatten(2, 3)).unflatten(2, size)
    weights = neighborhood_weights(q, k, bias, 3, dilated)
    actual = neighborhood_apply(weights, v, 3, dilated)
    torch.testing.assert_close(actual, expected)
    seed = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    for ours, theirs in zip(
            torch.autograd.grad(actual, (q, k, v), seed), torch.autograd.grad(expected, (q, k, v), seed), strict=True):
        torch.testing.assert_close(ours, theirs)


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
            y = x + block.cpe1(x)
            y = y + block.mixer(block.norm1(y))
            y = y + block.cpe2(y)
            expected = block.mlp(block.norm2(y)) if kind == "shortcut" else y
            torch.testing.assert_close(block(x), expected)


def test_cfgs_say_where_weights_come_from():
    for name, cfg in default_cfgs.items():
        url = cfg.default.url or ""
        assert url.startswith("https://huggingface.co/LMMM2025/A2Mamba/") == (not name.startswith("test_"))
