"""Interpolated mask tokens: against the published code's, and against the sum as it is written."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS
from vmamba.tasks.pretraining import TokenInterpolation, interpolate_tokens

FIXTURES = sorted((GOLDENS / "mambamim").glob("*.safetensors"))


def naive(features, visible, transition):
    """The definition, token by token; tokens [L, C]."""
    length = len(features)
    anchors = [i for i in range(length) if visible[i] or i in (0, length - 1)]
    tokens = torch.empty_like(features)
    for left, right in pairwise(anchors):
        n = right - left
        alpha = torch.linspace(0, 1, n, dtype=features.dtype) if n > 1 else torch.zeros(1, dtype=features.dtype)
        x = [(1 - a) * features[left] + a * features[right] for a in alpha]
        for r in range(n):
            tokens[left + r] = sum(torch.matrix_power(transition, n - 1 - q) @ x[q] for q in range(r + 1))
    tokens[-1] = transition @ features[-1]
    return tokens


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_parity_with_the_published_code(path):
    """Its tokens are right and lie in the wrong places: channels and positions are mixed when they become a map."""
    golden, meta = load_file(path), json.loads(path.with_suffix(".json").read_text())
    assert meta["name"] == path.stem
    features, visible = golden["feat"].movedim(1, -1), golden["active"][:, 0]
    tokens = interpolate_tokens(features, visible, golden["A"][0])
    scrambled = tokens.reshape(golden["mask_token"].shape)
    assert torch.allclose(scrambled, golden["mask_token"], rtol=0, atol=1e-5)
    filled = torch.where(golden["active"], golden["feat"], scrambled)
    assert torch.allclose(filled, golden["filled"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(1,), (2,), (23,), (5, 7), (1, 6), (3, 2, 4), (2, 2, 2, 3)])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_the_sum_as_it_is_written(grid, share):
    """In float64, of images with masks of their own, on grids of any number of axes."""
    torch.manual_seed(len(grid))
    features = torch.randn(3, *grid, 5, dtype=torch.float64)
    visible = torch.rand(3, *grid) < share
    transition = 0.4 * torch.randn(5, 5, dtype=torch.float64)
    tokens = interpolate_tokens(features, visible, transition)
    for index in range(3):
        expected = naive(features[index].flatten(0, -2), visible[index].flatten(), transition)
        assert torch.allclose(tokens[index].flatten(0, -2), expected, rtol=1e-10, atol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    transition = torch.randn(2, 2, dtype=torch.float64).mul_(0.5).requires_grad_()
    visible = torch.rand(2, 3, 4) < 0.4
    assert torch.autograd.gradcheck(lambda f, a: interpolate_tokens(f, visible, a), (features, transition))


def test_transition_of_zero_learns():
    """A begins at zero, where its powers are flat; the first power is not."""
    fill = TokenInterpolation(3)
    visible = torch.tensor([[True, False, False, False, True]])
    fill(torch.randn(1, 5, 3), visible).square().sum().backward()
    assert fill.transition.grad.abs().sum() > 0


def test_a_long_gap_is_no_problem_to_the_others():
    """Powers that grow beyond float32 in one gap leave the tokens of the other gaps as they are."""
    visible = torch.zeros(1, 400, dtype=torch.bool)
    visible[0, :10] = True
    tokens = interpolate_tokens(torch.ones(1, 400, 1), visible, torch.full((1, 1), 3.0))
    assert not tokens[0, 20:].isfinite().all()
    assert torch.equal(tokens[0, :9], torch.ones(9, 1))     # gaps of one: the anchor itself


def test_fill_keeps_the_visible_and_looks_at_nothing_else():
    fill = TokenInterpolation(4)
    torch.nn.init.normal_(fill.transition, std=0.3)
    features, visible = torch.randn(2, 3, 5, 4), torch.rand(2, 3, 5) < 0.4
    filled = fill(features, visible)
    assert torch.equal(filled[visible], features[visible])
    other = torch.where(visible.unsqueeze(-1), features, float("nan"))
    assert torch.equal(fill(other, visible), filled)
    shared = fill(features, visible[:1])        # one mask for all
    assert torch.equal(shared[0], filled[0])


@pytest.mark.parametrize(("features", "visible", "transition", "message"), [
    ((2, 4), (2, 4), (4, 4), r"need to be \[B, \*grid, C\]"),
    ((2, 0, 4), (2, 0), (4, 4), "with positions"),
    ((2, 3, 4), (2, 4), (4, 4), r"visible is \[2, 4\]"),
    ((2, 3, 4), (3, 3), (4, 4), r"needs to be \[2, 3\] or \[1, 3\] bool"),
    ((2, 3, 4), (2, 3), (3, 3), r"transition is \[3, 3\], but needs to be \[4, 4\]"),
])
def test_shapes_that_do_not_fit(features, visible, transition, message):
    with pytest.raises(ValueError, match=message):
        interpolate_tokens(torch.zeros(features), torch.ones(visible, dtype=torch.bool), torch.zeros(transition))


def test_visible_has_to_be_bool():
    with pytest.raises(ValueError, match=r"torch.float32"):
        interpolate_tokens(torch.zeros(1, 3, 2), torch.ones(1, 3), torch.zeros(2, 2))
