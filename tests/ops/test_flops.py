"""What torch's counter of operations says of the scans, and so of whole models."""
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmamba.ops import (
    neighborhood_apply,
    neighborhood_weights,
    selective_scan,
    ss2d_scan,
    ss2d_scan_norm,
    ssd_scan,
)
from vmamba.scans import scan_order


def counted(function, *arguments, **options):
    """Multiply-adds."""
    with FlopCounterMode(display=False) as counter:
        function(*arguments, **options)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("inference", [True, False])
def test_scans_count_by_the_rule_of_vmambas_authors(inference):
    batch, tokens, channels, states, directions, rank = 2, 12, 6, 3, 4, 5
    with torch.inference_mode(inference):
        u = torch.randn(batch, channels, tokens)
        B = torch.randn(batch, 1, states, tokens)
        one = counted(selective_scan, u, torch.rand_like(u), -torch.rand(channels, states), B, B)
        x = torch.randn(batch, tokens, channels)
        parameters = (
            torch.randn(batch, tokens, directions, rank + 2 * states), torch.randn(directions, channels, rank), None,
            torch.rand(directions, channels, states), None)
        order = scan_order("cross", (3, 4), directions)
        image = counted(ss2d_scan, x, *parameters, order)
        normed = counted(ss2d_scan_norm, x, *parameters, order, torch.ones(channels), torch.zeros(channels))
    rule = batch * tokens * channels * (9 * states + 1)
    assert one == rule
    assert image == normed == directions * (rule + batch * tokens * channels * rank)


@pytest.mark.parametrize(("causal", "per_state"), [(True, 3), (False, 2)])
def test_the_scan_of_mamba_2_counts_its_recurrence(causal, per_state):
    batch, tokens, heads, channels, groups, states = 2, 70, 4, 3, 2, 5
    x, dt = torch.randn(batch, tokens, heads, channels), torch.rand(batch, tokens, heads)
    B = torch.randn(batch, tokens, groups, states)
    rule = batch * tokens * heads * channels * (per_state * states + 1)
    assert counted(ssd_scan, x, dt, -torch.ones(heads), B, B, causal=causal) == rule


def test_neighbourhood_attention_counts_its_products():
    q = torch.randn(2, 5, 6, 3, 4)
    rule = q.numel() * 9
    assert counted(neighborhood_weights, q, q, torch.randn(3, 5, 5), 3) == rule
    assert counted(neighborhood_apply, torch.rand(2, 5, 6, 3, 9), q, 3) == rule


@pytest.mark.parametrize(("name", "published"), [
    ("mlla_tiny", 4.2), ("vssd_tiny", 4.5), ("mambavision_tiny", 4.4), ("a2mamba_nano", 0.8)])
def test_the_other_families_are_as_published(name, published):
    """Of their papers' tables, in billions; which parts those count they do not say."""
    model = timm.create_model(name, device="meta").eval()
    with torch.no_grad():
        assert counted(model, torch.zeros(1, 3, 224, 224, device="meta")) / 1e9 == pytest.approx(published, rel=0.05)


def test_vmamba_tiny_is_as_published():
    """VMamba-T at 224 x 224: 4.91 G by the authors' counter, which counts norms too."""
    model = timm.create_model("vmamba_tiny_s1l8", device="meta").eval()
    with torch.no_grad():
        assert counted(model, torch.zeros(1, 3, 224, 224, device="meta")) / 1e9 == pytest.approx(4.906, rel=0.02)
