"""Grad-CAM: its equation, in whatever layout a family has its maps."""
import pytest
import timm
import torch

from tests.support.tolerances import assert_close
from vmamba.analysis import class_activation
from vmamba.analysis.class_activation import normalise_maps
from vmamba.errors import UserError


def by_hand(model, images, classes, module, to_map):
    """Equations 1 and 2 of the paper with the layout of one family written out."""
    kept = []
    hook = module.register_forward_hook(lambda m, given, output: kept.append(output))
    score = model(images).gather(1, classes.unsqueeze(1)).sum()
    hook.remove()
    gradient, = torch.autograd.grad(score, kept[0])
    features, gradient = to_map(kept[0]), to_map(gradient)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()


def test_channels_last_maps():
    model = timm.create_model("test_vmamba").eval()
    images, classes = torch.randn(2, 3, 64, 90), torch.tensor([3, 700])
    found = class_activation(model, images, classes)
    assert list(found.maps) == [f"stages.{i}" for i in range(4)]
    for i in range(4):
        expected = by_hand(model, images, classes, model.stages[i], lambda t: t.permute(0, 3, 1, 2))
        assert_close(found.maps[f"stages.{i}"], expected)
    assert_close(found.probabilities, model(images).softmax(1)[range(2), classes])


def test_tokens_around_a_class_token():
    model = timm.create_model("test_vim").eval()
    images = torch.randn(2, 3, 64, 96)
    found = class_activation(model, images)
    assert torch.equal(found.classes, model(images).argmax(1))
    assert list(found.maps) == ["blocks.0", "blocks.1"]     # the last one's patches do not reach the class token

    def to_map(tokens):
        return torch.cat([tokens[:, :12], tokens[:, 13:]], dim=1).transpose(1, 2).unflatten(2, (4, 6))

    assert_close(found.maps["blocks.1"], by_hand(model, images, found.classes, model.blocks[1], to_map))


@pytest.mark.parametrize("name", ["test_res_vmamba", "test_mambavision", "test_plainmamba", "test_mlla", "test_resnet"])
def test_other_families(name):
    model = timm.create_model(name).eval().requires_grad_(False)
    found = class_activation(model, torch.randn(1, 3, 64, 96))
    assert len(found.maps) > 1
    for stage, values in found.maps.items():
        reduction = next(info["reduction"] for info in model.feature_info if info["module"] == stage)
        assert values.shape == (1, 64 // reduction, 96 // reduction)
        assert torch.isfinite(values).all()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stage_that_the_score_does_not_depend_on():
    model = timm.create_model("test_vim").eval()
    with pytest.raises(UserError, match=r"does not depend on the map after blocks\.2"):
        class_activation(model, torch.randn(1, 3, 32, 32), stages=[2])


def test_normalised_maps():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert torch.equal(normalise_maps(maps), torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
