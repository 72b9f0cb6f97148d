"""Effective receptive fields of convolutions, where they are known, and their measures."""
import pytest
import timm
import torch
from torch import nn

from vmamba.analysis import effective_receptive_field
from vmamba.analysis.stages import default_stages
from vmamba.errors import UserError


class Boxes(nn.Module):
    """Two 3x3 convolutions of ones, a stage each."""

    feature_info = ({"module": "stages.0"}, {"module": "stages.1"})

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(2))
        for conv in self.stages:
            nn.init.ones_(conv.weight)

    def forward_intermediates(self, x, indices, intermediates_only):
        maps = []
        for conv in self.stages:
            x = conv(x)
            maps.append(x)
        return [maps[i] for i in indices]


def test_weights_are_the_kernel_around_the_middle():
    first, second = effective_receptive_field(Boxes(), [torch.randn(2, 1, 9, 11), torch.randn(1, 1, 9, 11)])
    expected = torch.zeros(9, 11, dtype=torch.float64)
    triangle = torch.tensor([1.0, 2, 3, 2, 1], dtype=torch.float64)
    expected[2:7, 3:8] = triangle.outer(triangle)
    torch.testing.assert_close(second.weights, expected)
    assert (first.stage, first.size, first.weights.count_nonzero()) == ("stages.0", (9, 11), 9)
    assert first.diameter == 3
    assert second.diameter == 5


def test_area_is_of_the_smallest_rectangle_that_holds_the_share():
    field, = effective_receptive_field(Boxes(), [torch.randn(1, 1, 99, 99)], [0])
    # nine equal weights: the middle one holds a ninth, all nine are a square of 3 x 3 pixels
    assert field.area(0.1) == pytest.approx(1 / 99**2)
    assert field.area(0.5) == field.area(1.0) == pytest.approx(9 / 99**2)


def test_signs_do_not_cancel():
    """Absolute values of each image: a model that turns its sign with the image has a receptive field all the same."""
    model = Boxes()
    model.stages[0].register_forward_hook(lambda module, given, output: output * given[0].sign().mean((1, 2, 3), True))
    one = torch.ones(1, 1, 5, 5)
    field, = effective_receptive_field(model, [torch.cat([one, -one])], [0])
    assert (field.weights[1:4, 1:4] == 1).all()


@pytest.mark.parametrize("name", ["test_vmamba", "test_vim", "test_mlla", "test_resnet"])
def test_models_of_any_kind_and_size(name):
    model = timm.create_model(name).eval()
    fields = effective_receptive_field(model, [torch.randn(1, 3, 64, 100)])
    assert [field.stage for field in fields] == [
        model.feature_info[i]["module"] for i in default_stages(len(model.feature_info))]
    for field in fields:
        assert field.weights.shape == (64, 100)
        assert 0 < field.area(0.5) <= field.area(0.99) <= 1


def test_stages_that_do_not_exist():
    with pytest.raises(UserError, match="there is no stage 4: the model has 4"):
        effective_receptive_field(timm.create_model("test_vmamba"), [torch.randn(1, 3, 32, 32)], [4])
    with pytest.raises(UserError, match="gives no feature maps"):
        effective_receptive_field(nn.Identity(), [torch.randn(1, 3, 32, 32)])


def test_default_stages():
    assert default_stages(4) == [0, 1, 2, 3]
    assert default_stages(24) == [5, 11, 17, 23]
    assert default_stages(5) == [0, 1, 2, 4]
