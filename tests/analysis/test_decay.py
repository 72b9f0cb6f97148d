"""Statistics of step sizes and decays, where all of them are known."""
import math

import pytest
import timm
import torch

from vmamba.analysis import decay_statistics, record_scans


def test_constant_steps_and_rates():
    """Of direction k every step size is softplus(k - 1) and every decay rate 1 + k / 4."""
    model = timm.create_model("test_vmamba").eval()
    mixer = model.stages[1].blocks[0].mixer
    with torch.no_grad():
        mixer.dt_weight.zero_()
        for k in range(4):
            mixer.dt_bias[k] = k - 1.0
            mixer.A_log[k] = math.log(1 + k / 4)
    rows = [found.row() for found in decay_statistics(model, [torch.randn(2, 3, 32, 40), torch.randn(1, 3, 32, 40)])]
    assert len(rows) == 6 * 4
    of_layer = [row for row in rows if row["layer"] == "stages.1.blocks.0.mixer"]
    assert [row["direction"] for row in of_layer] == [0, 1, 2, 3]
    for k, row in enumerate(of_layer):
        delta, rate = math.log1p(math.exp(k - 1)), 1 + k / 4
        assert row["delta_mean"] == pytest.approx(delta, rel=1e-5)
        assert row["rate_min"] == row["rate_max"] == pytest.approx(rate, rel=1e-5)
        assert row["decay_mean"] == pytest.approx(math.exp(-delta * rate), rel=1e-5)
        for share in (5, 50, 95):       # to the width of a bin
            assert row[f"delta_p{share}"] == pytest.approx(delta, rel=6e-3)
            assert -math.log(row[f"decay_p{share}"]) == pytest.approx(delta * rate, rel=6e-3)
        assert row["half_life"] == pytest.approx(math.log(2) / (delta * rate), rel=6e-3)


def test_quantiles_are_those_of_the_values():
    model, images = timm.create_model("test_spatial_mamba").eval(), torch.randn(2, 3, 48, 48)
    found = decay_statistics(model, [images])[0].row()
    walk = record_scans(model, images)[0].walk(0)
    decays = torch.exp(walk.delta.unsqueeze(-1) * walk.A).detach()
    half = 10 ** (0.5 * 16 / 3200)      # bin, as a factor
    for share in (5, 25, 50, 75, 95):
        for values, found_at in ((walk.delta, found[f"delta_p{share}"]), (-decays.log(), -math.log(
                found[f"decay_p{100 - share}"]))):
            assert (values < found_at / half).double().mean() <= share / 100 <= (
                values < found_at * half).double().mean()


def test_windows_are_one_direction_and_scales_two_layers():
    windows = decay_statistics(timm.create_model("test_mambavision").eval(), [torch.randn(1, 3, 96, 96)])
    assert {found.direction for found in windows} == {0}
    scales = decay_statistics(timm.create_model("test_msvmamba").eval(), [torch.randn(1, 3, 32, 32)])
    assert [found.layer for found in scales][:2] == ["stages.0.blocks.0.mixer 4x4", "stages.0.blocks.0.mixer 8x8"]
