"""Compiled for a GPU, models call operators that stand for several modules; here with the operators' CPU side."""
import pytest
import torch
from timm.models import create_model

import vmamba  # noqa: F401
from vmamba.layers import attentive_ssm, conv, ss2d


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "called"),
    [("test_vmamba", "ss2d_mixer"), ("test_a2mamba", "kron"), ("test_mlla", "depthwise_conv_add")])
def test_one_graph_for_all_sizes_with_the_operators_of_a_gpu(name, called, monkeypatch):
    for module in (attentive_ssm, conv, ss2d):
        monkeypatch.setattr(module, "runs_alone_on_gpu", lambda _: torch.compiler.is_dynamo_compiling())
    model = create_model(name)
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(
        model, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=True)
    for height, width in ((48, 64), (75, 50)):
        x = torch.randn(2, 3, height, width)
        results = []
        for call in (model, compiled):
            model.zero_grad()
            torch.manual_seed(0)
            y = call(x)
            y.square().sum().backward()
            results.append([y, *(p.grad.clone() for p in model.parameters())])
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert len(graphs) == 1
    assert any(called in str(node.target) for node in graphs[0].graph.nodes)
