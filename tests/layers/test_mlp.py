import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vmamba.layers import Mlp


def plain(mlp, x):
    return F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)


@pytest.fixture
def case():
    torch.manual_seed(0)
    return Mlp(8, 12).double(), torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("way", ["eager", "compiled", "scripted", "traced by FX"])
def test_every_way_gives_the_same(case, way):
    mlp, x = case
    run = {"eager": lambda m: m, "scripted": torch.jit.script, "traced by FX": torch.fx.symbolic_trace,
           "compiled": lambda m: torch.compile(m, fullgraph=True, backend="aot_eager")}[way](mlp)
    inputs = (x, *mlp.parameters())
    got, expected = run(x), plain(mlp, x)
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent),
                    strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(run(x), expected)


class Scaled(nn.Linear):
    """Like an adapter: more than its weight and bias."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_an_adapter_is_called(case, name):
    mlp, x = case
    adapted = Scaled(*reversed(getattr(mlp, name).weight.shape)).double()
    adapted.load_state_dict(getattr(mlp, name).state_dict())
    setattr(mlp, name, adapted)
    torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))
    assert not torch.allclose(mlp(x), plain(mlp, x))


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_hooks_are_called(case, name):
    mlp, x = case
    seen = []
    handle = getattr(mlp, name).register_forward_hook(lambda *given: seen.append(given[2].shape))
    mlp(x)
    assert seen == [(2, 3, 4, 12 if name == "fc1" else 8)]
    handle.remove()
    mlp(x)
    assert len(seen) == 1
