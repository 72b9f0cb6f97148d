"""When an operator stands for modules."""
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vmamba.layers.plain import is_plain, runs_alone_on_gpu


class Doubling(nn.Module):
    def forward(self, x):
        return x * 2 if runs_alone_on_gpu(x) else x


@pytest.mark.parametrize(("device", "doubled"), [("cuda", True), ("cpu", False)])
def test_a_compiler_meets_operators_on_a_gpu(device, doubled):
    graphs = []
    with FakeTensorMode():
        x = torch.empty(3, device=device)
        torch.compile(Doubling(), backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)(x)
    assert any("mul" in str(node.target) for graph in graphs for node in graph.graph.nodes) is doubled


def test_an_exporter_does_not():
    with FakeTensorMode():
        program = torch.export.export(Doubling(), (torch.empty(3, device="cuda"),), strict=False)
    assert not any("mul" in str(node.target) for node in program.graph.nodes)


def test_modules_that_something_was_added_to_are_called():
    layer = nn.Linear(2, 2)
    assert is_plain(layer, nn.Linear)
    assert not is_plain(nn.Bilinear(2, 2, 2), nn.Linear)
    layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer, nn.Linear)
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda *_: None)
    assert not is_plain(layer, nn.Linear)
