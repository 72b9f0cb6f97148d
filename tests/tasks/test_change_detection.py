"""ChangeMamba's systems against the published implementation, and over other backbones."""
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.goldens import GOLDENS, fill
from tests.support.parity import load_golden
from vmamba.layers import SS2D
from vmamba.ops import ss2d_scan
from vmamba.scans import scan_order
from vmamba.tasks.change_detection import (
    change_losses,
    checkpoint_filter_fn,
    create_change_model,
    create_metrics,
)
from vmamba.tasks.change_detection.decoders import SpatioTemporalRelation
from vmamba.tasks.change_detection.losses import lovasz_softmax
from vmamba.tasks.change_detection.metrics import class_maps

SMALL = {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}
HEADS = {"logits_cd": "change", "logits_t1": "first", "logits_t2": "second", "logits_damage": "damage",
         "logits_loc": "building", "logits_building": "building"}


def small_model(task, **kwargs):
    return create_change_model(task, "test_vmamba", **SMALL, **kwargs)


def thinned(x, shape):
    """The channels that a fixture holds of a map [B, H, W, C]."""
    return x.permute(0, 3, 1, 2)[:, ::x.shape[3] // shape[1]]


@pytest.mark.parametrize("fixture", sorted(p.stem for p in (GOLDENS / "changemamba").glob("mamba*.json")))
def test_matches_the_published_model(fixture):
    meta, tensors = load_golden(f"changemamba/{fixture}.json")
    task = fixture.removeprefix("mamba")[:3]
    size = {(2, 4): "tiny", (2, 15): "small"}[(meta["config"]["depths"][0], meta["config"]["depths"][2])]
    model = create_change_model(task, "base" if meta["config"]["dims"] == 128 else size).eval()
    model.load_state_dict(checkpoint_filter_fn(dict(fill.fill_state_dict(meta["entries"])), model))
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    decoder = model.damage_decoder if task == "bda" else model.change_decoder
    taps = {}

    def tap(module, name):
        module.register_forward_hook(lambda m, inputs, out: taps.__setitem__(name, out))

    for level in (2, 4):
        for j, kind in enumerate(("parallel", "cross", "sequential"), start=1):
            tap(getattr(decoder.relations[level - 1], kind), f"st_block_{level}{j}_c8")
    tap(decoder, "decoder_out_c8")
    for i, norm in enumerate(model.encoder.norms):
        norm.register_forward_hook(lambda m, inputs, out, i=i: taps.__setitem__(f"enc_pre_stage{i}_c8", out[:1]))
    pair = [fill.seeded_randn(meta["input"][date]["name"], meta["input"][date]["shape"]) for date in ("pre", "post")]
    with torch.no_grad():
        logits = model(*pair)
    found = {key: logits[HEADS[key]][:, :, ::4, ::4] for key in tensors if key in HEADS}
    assert len(found) == len(model.classes)
    found |= {key: thinned(taps[key], tensors[key].shape) for key in tensors if key in taps}
    assert found.keys() == tensors.keys()
    for key, expected in tensors.items():
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found[key], expected, atol=1e-5 * scale, rtol=0, msg=lambda m, key=key: key + m)


def test_arrangements_are_the_bitemporal_orders():
    """Without the convolution inside, scans of the laid out maps are those of the pair by the registered orders."""
    torch.manual_seed(0)
    mixer = SS2D(6, d_conv=0).double()
    first, second = torch.randn(2, 1, 3, 5, 6, dtype=torch.float64).unbind(0)

    def tokens_of(order):
        tokens = F.silu(mixer.in_proj(torch.cat([first, second], 1))).reshape(1, 30, -1)
        proj = mixer.x_proj(tokens).view(1, 30, 4, -1)
        y = ss2d_scan(tokens, proj, mixer.dt_weight, mixer.dt_bias, mixer.A_log, mixer.D, scan_order(order, (3, 5)))
        return mixer.out_proj(mixer.out_norm(y)).view(2, 3, 5, 6)

    cross = mixer(torch.stack([first, second], 3).flatten(2, 3))
    torch.testing.assert_close(tokens_of("bitemporal_cross"), torch.cat([cross[:, :, ::2], cross[:, :, 1::2]]))
    sequential = mixer(torch.cat([first, second], 2))
    torch.testing.assert_close(
        tokens_of("bitemporal_sequential"), torch.cat([sequential[:, :, :5], sequential[:, :, 5:]]))


def test_relation_knows_which_date_is_first():
    relation = SpatioTemporalRelation(8, 16).eval()
    first, second = torch.randn(2, 1, 4, 6, 8).unbind(0)
    assert relation(first, second).shape == (1, 4, 6, 16)
    assert (relation(first, second) - relation(second, first)).abs().max() > 1e-3


@pytest.mark.parametrize("task", ["bcd", "scd", "bda"])
def test_any_size_and_every_parameter_learns(task):
    model = small_model(task)
    logits = model(*torch.randn(2, 2, 3, 70, 45).unbind(0))
    assert {name: x.shape for name, x in logits.items()} == {
        name: (2, classes, 70, 45) for name, classes in model.classes.items()}
    labels = {name: torch.randint(classes, (2, 70, 45)) for name, classes in model.classes.items()}
    change_losses(task, logits, labels)["loss"].backward()
    unused = {k for k, p in model.named_parameters() if p.grad is None}
    assert not unused


SUITE = [name for name in timm.list_models("test_*") if timm.model_entrypoint(name).__module__.startswith("vmamba.")]


@pytest.mark.parametrize("name", SUITE)
def test_backbones_of_the_suite(name):
    """All with maps at the four strides, also where sides are no multiples of them."""
    strides = timm.create_model(name, features_only=True).feature_info.reduction()
    if list(strides) != [4, 8, 16, 32]:
        with pytest.raises(ValueError, match=f"{name} has maps at strides "):
            create_change_model("bcd", name)
        return
    model = create_change_model("bcd", name, dim=16).eval()
    with torch.no_grad():
        assert model(*torch.randn(2, 1, 3, 70, 45).unbind(0))["change"].shape == (1, 2, 70, 45)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_backbones_of_timm(name):
    kwargs = {"img_size": 64} if name.startswith("swin") else {}
    model = create_change_model("bcd", name, **kwargs).eval()
    assert model(torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64))["change"].shape == (1, 2, 64, 64)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: create_change_model("bcd", "test_vim"), "test_vim has maps at strides 16, 16, 16, but change detection"),
    (lambda: create_change_model("cd"), "unknown task 'cd'; known tasks: bcd, scd, bda"),
    (lambda: create_change_model("bcd", "test_vmamba", num_classes=3), "the task 'bcd' has 2 classes, got num_cla"),
    (lambda: small_model("bcd")(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 32)),
     r"the two dates must have one shape, got \[1, 3, 64, 64\] and \[1, 3, 64, 32\]"),
])
def test_what_does_not_fit_is_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_own_checkpoints_pass_and_incomplete_ones_are_refused():
    model = small_model("scd", num_classes=5)
    state = model.state_dict()
    assert checkpoint_filter_fn({"state_dict": state}, model).keys() == state.keys()
    del state["first_decoder.final.conv1.conv.weight"]
    with pytest.raises(RuntimeError, match=r"1 missing: first_decoder\.final\.conv1\.conv\.weight"):
        checkpoint_filter_fn(state, model)


META = json.loads((GOLDENS / "changemamba" / "losses_and_metrics.json").read_text())["values"]
DATA = {
    k: v.double() if v.is_floating_point() else v
    for k, v in load_file(GOLDENS / "changemamba" / "losses_and_metrics.safetensors").items()}
NAMES = {  # output -> the fixture's suffix, by task
    "bcd": {"change": "cd"}, "scd": {"change": "cd", "first": "t1", "second": "t2"},
    "bda": {"building": "cd", "damage": "damage"}}


def fixture(task, what):
    return {name: DATA[f"{what}_{suffix}"] for name, suffix in NAMES[task].items()}


@pytest.mark.parametrize(("task", "names"), [
    ("bcd", {"ce": "ce_change", "lovasz": "lovasz_change"}),
    ("scd", {"similarity": "similarity", "ce_t1": "ce_first", "lovasz_t1": "lovasz_first", "ce_cd": "ce_change",
             "lovasz_cd": "lovasz_change"}),
    ("bda", {"ce_damage": "ce_damage", "lovasz_damage": "lovasz_damage"}),
])
def test_losses(task, names):
    labels = fixture(task, "label")
    if task == "bcd":
        labels = {"change": DATA[META["bcd"]["label"]]}
    found = change_losses(task, fixture(task, "logits"), labels)
    for key, name in {**names, "total": "loss"}.items():
        assert found[name].item() == pytest.approx(META[task][key], rel=1e-9)


def test_losses_where_no_pixel_counts():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    nothing = torch.full((1, 4, 4), 255)
    assert lovasz_softmax(logits.softmax(1), nothing).item() == 0
    total = change_losses("bda", {"building": logits[:, :2], "damage": logits}, {
        "building": nothing, "damage": nothing})["loss"]
    total.backward()
    assert total.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("task", NAMES)
def test_metrics(task, parts):
    """At once, and streamed image by image."""
    metrics = create_metrics(task)
    metrics.update(fixture(task, "pred"), fixture(task, "pred"))
    metrics.reset()
    for part in torch.arange(2).chunk(parts):
        metrics.update({k: v[part] for k, v in fixture(task, "pred").items()},
                       {k: v[part] for k, v in fixture(task, "label").items()})
    expected = dict(META[f"metrics_{task}"])
    for i, value in enumerate(expected.pop("f1_per_class", []), start=1):
        expected[f"f1_damage{i}"] = value
    assert metrics.compute() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("task", NAMES)
def test_ignored_pixels_do_not_count(task):
    labels = fixture(task, "label")
    if task != "scd":
        half = {k: v.clone() for k, v in labels.items()}
        for v in half.values():
            v[:, 6:] = 255
    else:
        half = {**labels, "change": labels["change"].clone()}
        half["change"][:, 6:] = 255
    ignoring, cut = create_metrics(task), create_metrics(task)
    ignoring.update(fixture(task, "pred"), half)
    cut.update({k: v[:, :6] for k, v in fixture(task, "pred").items()}, {k: v[:, :6] for k, v in labels.items()})
    assert ignoring.compute() == pytest.approx(cut.compute(), rel=1e-6)


def test_land_cover_of_changed_pixels_has_a_class():
    pred, labels = fixture("scd", "pred"), fixture("scd", "label")
    with pytest.raises(ValueError, match="prediction 'first' has class 0 where something changed, but land cover has "):
        create_metrics("scd").update({**pred, "first": torch.zeros_like(pred["first"])}, labels)
    logits = {"change": torch.randn(1, 2, 3, 3), "first": F.one_hot(torch.zeros(1, 3, 3).long(), 7).movedim(3, 1)}
    assert class_maps(logits)["first"].min() >= 1


def test_the_tiny_encoder_takes_the_blocks_that_it_has():
    """Published weights of its namesake have five blocks in the third stage; it has the first four."""
    source = timm.create_model("vmamba_tiny_s2l5")
    model = create_change_model(
        "bcd", "tiny", pretrained=True, pretrained_cfg_overlay={"state_dict": source.state_dict()})
    state = source.state_dict()
    own = model.encoder.backbone.model.state_dict()
    assert "stages.2.blocks.4.norm1.weight" in state
    assert "stages.2.blocks.4.norm1.weight" not in own
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_encoder_takes_published_weights_of_its_family(monkeypatch):
    """``pretrained`` reaches timm for the encoder alone."""
    seen = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained, **kw: (seen.append((name, pretrained)), create(name, **kw))[1])
    create_change_model("bcd", "test_vmamba", pretrained=True)
    assert seen == [("test_vmamba", True)]
