"""Feature maps against those of the official detection backbone: fixtures with name-seeded weights."""
import pytest
import torch

from tests.goldens import fill
from tests.support.parity import load_golden
from vmamba.openmmlab import TimmFeatureBackbone

FIXTURES = {
    "vanilla_vmamba_tiny": "vmamba_tiny_v0",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5": "vmamba_tiny_s2l5",
    "vmamba_base_s2l15": "vmamba_base_s2l15",
}
ATOL = 2e-5
# The official float32 maps of the first release depart up to 8e-5 from the same code in float64, and nothing can be
# nearer to both: its float32 is held to that noise where it is more than the bound, its float64 to the bound.
NOISY_FIXTURE = "vanilla_vmamba_tiny"
FLOAT64_SIZE = "odd97x131"


def sample(y):
    return y.reshape(-1)[::max(1, y.numel() // 64)][:64]


@pytest.mark.parametrize("fixture", FIXTURES)
def test_normalised_maps(fixture):
    meta, tensors = load_golden(f"vmamba/{fixture}.json")
    entries = [e for e in meta["entries"] if not e[0].startswith(tuple(meta["backbone_dropped_prefixes"]))]
    backbone = TimmFeatureBackbone(FIXTURES[fixture]).eval()
    backbone.load_state_dict(dict(
        fill.fill_state_dict([*entries, *meta["backbone_extra_entries"]], meta["overrides"])))

    def check(size, suffix, dtype, atol, rtol=0.0):
        with torch.no_grad():
            maps = backbone.to(dtype)(fill.seeded_randn(size, meta["inputs"][size]["shape"]).to(dtype))
        for i, y in enumerate(maps):
            assert list(y.shape) == meta["outputs"][size][f"outnorm{i}"]["shape"]
            torch.testing.assert_close(
                sample(y), tensors[f"{size}.outnorm{i}.sample{suffix}"].to(dtype), atol=atol[i], rtol=rtol)

    sizes = [size for size, outputs in meta["outputs"].items() if "outnorm0" in outputs]
    assert sizes == ["rect160x192", FLOAT64_SIZE]
    noise = [meta["outputs"][FLOAT64_SIZE][f"outnorm{i}"]["max_abs_f32_minus_f64"] for i in range(4)]
    for size in sizes:
        # relative to values above 1: processors round differently, by up to 2.4e-5 of values of 1.6 and more
        check(size, "", torch.float32, [max(ATOL, n) if fixture == NOISY_FIXTURE else ATOL for n in noise], ATOL)
    check(FLOAT64_SIZE, "_f64", torch.float64, [ATOL] * 4)
