"""VMamba against the official implementation: fixtures with name-seeded weights, see tests/goldens."""
import json

import pytest
import timm
import torch
from safetensors.torch import load_file

import vmamba  # noqa: F401
from tests.goldens import GOLDENS, fill
from vmamba.models.vmamba import checkpoint_filter_fn

FIXTURES = {
    "vanilla_vmamba_tiny": "vmamba_tiny_v0",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5": "vmamba_tiny_s2l5",
    "vmamba_base_s2l15": "vmamba_base_s2l15",
}
# Tolerances the fixtures come with: ten times the float32 noise of the reference itself.
LOGITS_ATOL = 2e-5
GRADIENT_RTOL = 1e-4


def load_fixture(name):
    meta = json.loads((GOLDENS / "vmamba" / f"{name}.json").read_text())
    return meta, load_file(GOLDENS / "vmamba" / f"{name}.safetensors")


def official_state(meta):
    return dict(fill.fill_state_dict(meta["entries"], meta["overrides"]))


def build(fixture, meta):
    model = timm.create_model(FIXTURES[fixture]).eval()
    model.load_state_dict(checkpoint_filter_fn(official_state(meta), model))
    return model


def sample(x_nchw):
    flat = x_nchw.reshape(-1)
    return flat[::max(1, flat.numel() // 64)][:64]


@pytest.fixture(scope="module", params=FIXTURES)
def case(request):
    meta, tensors = load_fixture(request.param)
    return meta, tensors, build(request.param, meta)


def test_number_of_parameters(case):
    meta, _, model = case
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]


@pytest.mark.parametrize("size", ["sq224", "rect160x192", "odd97x131"])
def test_logits_and_features(case, size):
    meta, tensors, model = case
    taps = {}
    handles = [
        model.stem.register_forward_hook(lambda m, i, o: taps.__setitem__("patch_embed", o)),
        model.stages[0].blocks[0].mixer.register_forward_hook(lambda m, i, o: taps.__setitem__("block0_ss2d", o)),
        model.stages[0].blocks[0].register_forward_hook(lambda m, i, o: taps.__setitem__("block0", o)),
    ]
    x = fill.seeded_randn(size, meta["inputs"][size]["shape"])
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        logits = model.forward_head(final)
    for handle in handles:
        handle.remove()
    taps = {name: tap.permute(0, 3, 1, 2) for name, tap in taps.items()}
    taps |= {f"stage{i}": tap for i, tap in enumerate(maps)}

    torch.testing.assert_close(logits, tensors[f"{size}.logits"], atol=LOGITS_ATOL, rtol=0)
    for name, tap in taps.items():
        stats = meta["outputs"][size][name]
        assert list(tap.shape) == stats["shape"]
        # maps are not normalised: the same relative bound, at each map's own scale
        atol = LOGITS_ATOL * max(1.0, stats["abs_max"])
        torch.testing.assert_close(sample(tap.contiguous()), tensors[f"{size}.{name}.sample"], atol=atol, rtol=0)


@pytest.mark.parametrize("fixture", ["vmamba_tiny_s1l8", "vanilla_vmamba_tiny", "vmamba_tiny_s2l5"])
def test_gradients(fixture):
    meta, tensors = load_fixture(fixture)
    grad = meta["grad"]
    model = build(fixture, meta).double()
    x = fill.seeded_randn(grad["input"], grad["shape"]).double().requires_grad_()
    dlogits = fill.seeded_randn(grad["input"] + ".dlogits", (grad["shape"][0], 1000)).double()
    (model(x) * dlogits).sum().backward()

    # the filter maps official names to ours; fed with names instead of tensors it tells where each went
    official = official_state(meta)
    tags = {k: torch.full(v.shape, float(i)) for i, (k, v) in enumerate(official.items())}
    names = list(official)
    ours = {names[int(v.flatten()[0])]: k for k, v in checkpoint_filter_fn(tags, model).items()}
    params = dict(model.named_parameters())
    assert sorted(ours.values()) == sorted(params)
    torch.testing.assert_close(
        x.grad.norm().item(), grad["dinput_l2"], rtol=GRADIENT_RTOL, atol=0)
    for official_name, l2 in grad["param_grad_l2"].items():
        torch.testing.assert_close(params[ours[official_name]].grad.norm().item(), l2, rtol=GRADIENT_RTOL, atol=1e-8)

    samples = torch.stack([
        torch.cat([g[::max(1, g.numel() // 8)][:8], g.new_zeros(max(0, 8 - g.numel()))])
        for g in (params[ours[name]].grad.flatten() for name in sorted(grad["param_grad_l2"]))
    ])
    expected = tensors["grad64x96.param_grad_sample8_f64"]
    torch.testing.assert_close(samples, expected, rtol=GRADIENT_RTOL, atol=1e-6)
    torch.testing.assert_close(sample(x.grad), tensors["grad64x96.dinput.sample_f64"], rtol=GRADIENT_RTOL, atol=1e-6)
