"""Learning rates and weight decay by layer."""
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from vmamba.errors import UserError
from vmamba.openmmlab import TimmFeatureBackbone

LR, DECAY, WEIGHT_DECAY = 1e-2, 0.5, 0.1


class Detector(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.backbone = TimmFeatureBackbone("test_vmamba", **options)
        self.head = nn.Conv2d(48, 5, 1)


def groups(model, **paramwise):
    """Name of a parameter -> its optimizer group."""
    wrapper = build_optim_wrapper(model, {
        "type": "OptimWrapper", "constructor": "TimmLayerDecayConstructor",
        "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY}, "paramwise_cfg": paramwise})
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group["params"]}


def test_rates_fall_towards_the_input():
    """test_vmamba has six blocks in four stages, so seven layers with the stem; heads and norms are above them."""
    found = groups(Detector(), decay_rate=DECAY)
    layers = {"stem.conv1": 0, "stages.0.blocks.0": 1, "stages.1.blocks.0": 2, "stages.1.blocks.1": 3,
              "stages.2.blocks.0": 4, "stages.2.blocks.1": 5, "stages.3.blocks.0": 6}
    for prefix, layer in layers.items():
        names = [n for n in found if n.startswith(f"backbone.model.{prefix}.")]
        assert names
        for name in names:
            assert found[name]["lr"] == pytest.approx(LR * DECAY ** (7 - layer)), name
    for name in found:
        if not name.startswith("backbone.model."):
            assert found[name]["lr"] == pytest.approx(LR), name
    assert {n for n, _ in Detector().named_parameters()} == set(found)


def test_options_of_the_default_constructor_stay():
    found = groups(
        Detector(), decay_rate=DECAY, norm_decay_mult=0.0, custom_keys={"head": {"lr_mult": 10.0}})
    assert found["head.weight"]["lr"] == pytest.approx(10 * LR)
    assert found["backbone.outnorm0.weight"]["weight_decay"] == 0.0
    assert found["backbone.model.stages.3.blocks.0.mlp.fc1.weight"]["weight_decay"] == WEIGHT_DECAY


def test_what_the_model_exempts_is_not_decayed():
    found = groups(Detector(), decay_rate=DECAY)
    assert found["backbone.model.stages.0.blocks.0.mixer.D"]["weight_decay"] == 0.0
    assert found["backbone.model.stages.0.blocks.0.mixer.A_log"]["weight_decay"] == WEIGHT_DECAY


def test_frozen_parameters_are_left_out():
    found = groups(Detector(frozen_stages=1), decay_rate=DECAY)
    assert not any(n.startswith(("backbone.model.stem.", "backbone.model.stages.0.")) for n in found)
    assert found["backbone.model.stages.3.blocks.0.mlp.fc1.weight"]["lr"] == pytest.approx(LR * DECAY)


@pytest.mark.parametrize(("model", "paramwise", "message"), [
    (Detector, {}, "needs a decay_rate above 0, at most 1"),
    (Detector, {"decay_rate": 1.5}, "needs a decay_rate above 0, at most 1"),
    (lambda: nn.Linear(2, 2), {"decay_rate": 0.9}, "needs a model with a backbone of type TimmFeatureBackbone"),
])
def test_errors(model, paramwise, message):
    with pytest.raises(UserError, match=message):
        groups(model(), **paramwise)


def test_a_step_moves_the_output_more_than_the_input():
    model = Detector()
    wrapper = build_optim_wrapper(model, {
        "type": "OptimWrapper", "constructor": "TimmLayerDecayConstructor",
        "optimizer": {"type": "SGD", "lr": LR}, "paramwise_cfg": {"decay_rate": DECAY}})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    moved = {n: (p - before[n]).abs().max().item() for n, p in model.named_parameters()}
    assert moved["head.weight"] > moved["backbone.model.stages.3.blocks.0.mlp.fc1.bias"]
    assert moved["backbone.model.stages.3.blocks.0.mlp.fc1.bias"] > moved["backbone.model.stem.conv1.bias"]
