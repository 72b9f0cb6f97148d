"""RSMamba against the official implementation with given permutations, and its paths."""
import pytest
import torch
import torch.nn.functional as F
from timm.models import create_model

import vmamba  # noqa: F401
from tests.support.parity import assert_parity, build_official, load_golden
from vmamba.layers import MultiPathMixer
from vmamba.models.rsmamba import checkpoint_filter_fn
from vmamba.ops import selective_scan
from vmamba.scans import register_path

PARAMETERS = {"rsmamba_base": 6_385_773, "rsmamba_large": 16_252_717, "rsmamba_huge": 33_060_845}
MINI = {"img_size": 96, "depth": 2}
MODULES = {
    "stem": "patch_embed", "layer1.gate": "blocks.0.mixer.gate", "layerlast.gate": "blocks.{last}.mixer.gate",
    "ln1": "norm", "ln2": "fc_norm"}


@pytest.mark.parametrize(("fixture", "kwargs"), [
    ("rsmamba_mini_forward", {"paths": 1, **MINI}), ("rsmamba_mini_gate", {"paths": 2, **MINI}),
    pytest.param("rsmamba_b_shuffle_gate", {}, marks=pytest.mark.slow)])
def test_matches_the_official_model(fixture, kwargs):
    """The official mixer's outputs are not compared: they come before sums that are taken first here."""
    meta, tensors = load_golden(f"rsmamba/{fixture}.json")
    model = build_official(
        meta, "rsmamba_base", checkpoint_filter_fn, num_classes=meta["config"]["num_classes"], **kwargs)
    assert sum(p.numel() for p in model.parameters()) == meta["num_parameters"]
    for i, permutation in enumerate(tensors.get("perms", ()) if model.blocks[0].mixer.paths == 3 else ()):
        register_path(f"given{chr(97 + i)}")(lambda height, width, walk=permutation: walk)
        model.blocks[i].mixer.scan = f"h+h_flip+given{chr(97 + i)}"
    last = str(len(model.blocks) - 1)
    modules = {k: v.replace("{last}", last) for k, v in MODULES.items() if k in meta["features"]}
    meta["features"] = {k: v for k, v in meta["features"].items() if k in modules}
    if "stem" in modules:  # with the position embedding, which no module of ours adds
        tensors["feat.stem"], modules, meta = None, {k: v for k, v in modules.items() if k != "stem"}, {
            **meta, "features": {k: v for k, v in meta["features"].items() if k != "stem"}}
    assert_parity(model, meta, tensors, modules)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name):
    model = create_model(name, device="meta")   # with NWPU-RESISC45's classes, for which there are weights
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 45)


@pytest.mark.parametrize(("gate", "scan"), [(True, "h+h_flip+random_seed7"), (False, "h+h_flip"), (True, "h")])
def test_mixer_is_one_mamba_along_each_walk(gate, scan):
    """Each path with projections of its own, and the gate from the means of their outputs, as the paper writes it."""
    mixer = MultiPathMixer(16, scan, gate, d_state=3).double()
    x = torch.randn(2, 15, 16, dtype=torch.float64)
    walks = [torch.arange(15), torch.arange(15).flip(0), torch.randperm(
        15, generator=torch.Generator().manual_seed(7))][:scan.count("+") + 1]
    outputs = []
    for walk in walks:
        u, z = mixer.in_proj(x[:, walk]).mT.chunk(2, dim=1)
        u = F.silu(F.conv1d(u, mixer.conv_weight.mT.reshape(4, 32).t().unsqueeze(1), mixer.conv_bias[0], padding=3,
                            groups=32)[..., :15])
        r, B, C = F.linear(u.mT, mixer.x_proj[0]).mT.split([1, 3, 3], dim=1)
        y = selective_scan(
            u, F.linear(r.mT, mixer.dt_weight[0]).mT, -mixer.A_log[0].exp(), B, C, mixer.D[0], z, mixer.dt_bias[0],
            True, backend="reference")
        outputs.append(torch.empty_like(x).index_copy(1, walk, mixer.out_proj(y.mT)))
    if gate and len(walks) > 1:
        weights = mixer.gate[0](torch.cat([y.mean(1) for y in outputs], dim=-1)).softmax(-1)
    else:
        weights = torch.full((2, len(walks)), 1 / len(walks), dtype=torch.float64)
    expected = sum(w[:, None, None] * y for w, y in zip(weights.unbind(1), outputs, strict=True))
    torch.testing.assert_close(mixer(x, 3, 5), expected)


def test_fixed_permutations_differ_by_block_and_random_ones_follow_the_seed():
    x = torch.randn(2, 3, 64, 64)
    fixed = create_model("test_rsmamba").eval()
    assert len({block.mixer.scan for block in fixed.blocks}) == len(fixed.blocks)
    random = create_model("test_rsmamba", shuffle="random").eval()
    random.load_state_dict(fixed.state_dict())
    with torch.no_grad():
        assert torch.equal(fixed(x), fixed(x))
        torch.manual_seed(3)
        first, second = random(x), random(x)
        torch.manual_seed(3)
        assert torch.equal(random(x), first)
    assert not torch.equal(first, second)


def test_random_path_is_the_path_of_that_permutation():
    mixer = MultiPathMixer(16, "h+h_flip", True, random=True, d_state=3)
    torch.manual_seed(5)
    drawn = torch.randperm(15)
    register_path("drawn")(lambda height, width: drawn)
    fixed = MultiPathMixer(16, "h+h_flip+drawn", True, d_state=3)
    fixed.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 15, 16)
    torch.manual_seed(5)
    torch.testing.assert_close(mixer(x, 3, 5), fixed(x, 3, 5))


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"paths": 4}, "paths is 4, but needs 1, 2 or 3"),
    ({"shuffle": "always"}, "shuffle is 'always', but needs one of 'fixed', 'random'")])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model("test_rsmamba", **kwargs)


def test_an_official_file_loads(tmp_path):
    meta, _ = load_golden("rsmamba/rsmamba_mini_gate.json")
    source = build_official(meta, "rsmamba_base", checkpoint_filter_fn, num_classes=30, paths=2, **MINI)
    own = source.state_dict()
    torch.save({"state_dict": own}, tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth"), "num_classes": 30}
    loaded = create_model(
        "rsmamba_base", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=30, paths=2, depth=2, img_size=64)
    assert loaded.pos_embed.shape == (1, 64, 192)
    assert torch.equal(loaded.blocks[1].mixer.A_log, own["blocks.1.mixer.A_log"])
