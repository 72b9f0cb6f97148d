"""State correlation: what the maps are made of, and the scores of small examples."""
import pytest
import timm
import torch
import torch.nn.functional as F

from tests.support.tolerances import assert_close
from vmamba.analysis import Tap, external_scores, internal_score, scan_layers, state_correlations
from vmamba.analysis.correlation import STATES, class_template
from vmamba.errors import UserError


def hooked(model, images, classes, module):
    """Output of a module, and the derivative of the class scores by it."""
    kept = []
    hook = module.register_forward_hook(lambda m, given, output: kept.append(output))
    score = model(images).gather(1, classes.unsqueeze(1)).sum()
    hook.remove()
    return kept[0].detach(), torch.autograd.grad(score, kept[0])[0]


@pytest.fixture(scope="module")
def vmamba():
    torch.manual_seed(3)
    model = timm.create_model("test_vmamba").eval()
    return model, torch.randn(2, 3, 64, 90), torch.tensor([4, 90]), "stages.2.blocks.1.mixer"


def by_definition(values, slopes):
    """The maps of states [B, h, w, D]."""
    values, slopes = values.relu(), slopes.relu()
    return (values * slopes.mean((1, 2), keepdim=True)).mean(3), (values * slopes).mean((1, 2))


@pytest.mark.parametrize(("state", "module"), [("x", ".in_proj"), ("c", ".conv"), ("y", "")])
def test_states_of_ss2d(vmamba, state, module):
    model, images, classes, layer = vmamba
    logits, found = state_correlations(model, images, classes, [Tap(layer, state)])
    external, internal = by_definition(*hooked(model, images, classes, model.get_submodule(layer + module)))
    assert_close(found[layer, state].external, external)
    assert_close(found[layer, state].internal, internal)
    assert_close(logits, model(images))


def test_what_the_scan_gives(vmamba):
    """State s: its derivative by hand, from that of what the mixer gives, back through projection and norm."""
    model, images, classes, layer = vmamba
    mixer = model.get_submodule(layer)
    _, found = state_correlations(model, images, classes, [Tap(layer, "s")])
    conv, _ = hooked(model, images, classes, mixer.conv)
    B, H, W, D = conv.shape
    tokens = conv.view(B, H * W, D)
    proj = mixer.x_proj(tokens).view(B, H * W, 4, -1)
    scanned = torch.ops.vmamba.ss2d_scan(
        tokens, proj, mixer.dt_weight, mixer.dt_bias, mixer.A_log, mixer.D, "cross", H, W, None, True)[0]
    scanned = scanned.detach().view(B, H, W, D).requires_grad_()
    norm = mixer.out_norm
    given = mixer.out_proj(F.layer_norm(scanned, (D,), norm.weight, norm.bias, norm.eps))
    slopes, = torch.autograd.grad(given, scanned, hooked(model, images, classes, mixer)[1])
    external, internal = by_definition(scanned.detach(), 4 * slopes)    # each of four directions has that derivative
    assert_close(found[layer, "s"].external, external)
    assert_close(found[layer, "s"].internal, internal)


def test_class_token():
    """External maps are without it, their mean derivative with it; internal correlation is that at the class token."""
    model = timm.create_model("test_vim").eval()
    images, classes, layer = torch.randn(2, 3, 64, 96), torch.tensor([4, 90]), "blocks.1.mixer"
    _, found = state_correlations(model, images, classes, [Tap(layer, "x"), Tap(layer, "z")])
    values, slopes = hooked(model, images, classes, model.blocks[1].mixer.in_proj)
    for state, half in (("x", slice(96)), ("z", slice(96, None))):
        a, g = values[..., half].relu(), slopes[..., half].relu()
        assert_close(found[layer, state].internal, a[:, 12] * g[:, 12])
        weighed = (a * g.mean(1, keepdim=True)).mean(2)
        expected = torch.cat([weighed[:, :12], weighed[:, 13:]], dim=1).view(2, 4, 6)
        assert_close(found[layer, state].external, expected)


@pytest.mark.parametrize(("name", "states"), [
    ("test_vmamba_m2", "xcsy"), ("test_localvim_midcls", "xcszy"), ("test_plainmamba", "xcszy"),
    ("test_mambavision", "xcszy"), ("test_msvmamba", "xcszy"), ("test_a2mamba", "csy")])
def test_states_of_other_families(name, states):
    model = timm.create_model(name).eval()
    images, classes, layer = torch.randn(1, 3, 32, 48), torch.tensor([1]), scan_layers(model)[-1]
    _, found = state_correlations(model, images, classes, [Tap(layer, state) for state in states])
    assert len({tuple(c.external.shape) for c in found.values()}) == 1
    for state in set(STATES) - set(states):
        with pytest.raises(UserError, match=f"has the states {', '.join(states)}, not {state}"):
            state_correlations(model, images, classes, [Tap(layer, state)])


def test_differentiable_maps_are_the_same(vmamba):
    model, images, classes, layer = vmamba
    taps = [Tap(layer, state) for state in ("x", "s")]
    _, plain = state_correlations(model, images, classes, taps)
    logits, found = state_correlations(model, images, classes, taps, differentiable=True)
    assert logits.requires_grad
    for tap in taps:
        assert found[tap].external.requires_grad
        assert not plain[tap].external.requires_grad
        assert_close(found[tap].external, plain[tap].external)
        assert_close(found[tap].internal, plain[tap].internal)


def test_external_scores():
    """A model that says 'yes' where the picture is bright, a map on its left half, an object in its left quarter."""
    class Bright(torch.nn.Module):
        def forward(self, images):
            brightness = images.mean((1, 2, 3))
            return torch.stack([brightness, -brightness], dim=1)

    images = torch.zeros(1, 1, 4, 8)
    images[..., :4] = 2.0
    external, foreground = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8)
    external[..., :4], foreground[..., :2] = 5.0, 1.0
    found = external_scores(Bright(), images, torch.tensor([0]), external, foreground)
    inside, outside = torch.tensor(2.0).sigmoid(), torch.tensor(0.5)
    torch.testing.assert_close(found.inside, inside.view(1))
    torch.testing.assert_close(found.outside, outside.view(1))
    assert float(found.coverage) == 0.5
    assert float(found.overlap) == 0.5
    torch.testing.assert_close(found.score, ((inside + 1e-5) / (outside + 1e-5) * 0.5).view(1))
    without = external_scores(Bright(), images, torch.tensor([0]), external)
    torch.testing.assert_close(without.score, 2 * found.score)


def test_internal_score():
    rows = torch.tensor([[9.0, 1.0, 0.0, 0.0], [8.0, 4.0, 0.0, 0.0]])     # use dimension 0, and 0 and 1
    found = internal_score(rows)
    assert found.density == pytest.approx(3 / 8)
    assert found.agreement == pytest.approx((1 + 0.5) / 2)
    assert found.score == pytest.approx(0.75 / (0.375 + 1e-5))
    few, many = torch.eye(8)[:1].repeat(3, 1), torch.eye(8)[:3]      # one dimension for all, or for each its own
    assert internal_score(few).score > internal_score(many).score
    assert class_template(rows).tolist() == [True, False, False, False]     # means 8.5 and 2.5
