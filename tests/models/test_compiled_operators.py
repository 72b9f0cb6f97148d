"""Compiled for a GPU, models call operators that stand for several modules; here with the operators' CPU side."""
import pytest
import torch
from functorch.compile import make_boxed_func
from timm.models import create_model
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.graph import GraphLowering

import vmamba  # noqa: F401
from vmamba.layers import attentive_ssm, conv, ss2d, state_fusion


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What a compiler for a GPU meets in layers."""
    for module, name in (
            (attentive_ssm, "runs_alone_on_gpu"), (conv, "runs_alone_on_gpu"), (conv, "is_compiled_for_gpu"),
            (ss2d, "runs_alone_on_gpu"), (state_fusion, "is_compiled_for_gpu")):
        monkeypatch.setattr(module, name, lambda _: torch.compiler.is_dynamo_compiling())
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "called"),
    [("test_vmamba", "ss2d_mixer"), ("test_a2mamba", "kron"), ("test_mlla", "depthwise_conv_add")])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_one_graph_for_all_sizes_with_the_operators_of_a_gpu(name, called):
    model = create_model(name)
    graphs = []
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vmamba", "test_a2mamba", "test_mlla", "test_spatial_mamba"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_compiler_leaves_maps_as_they_are(name):
    """Inductor lays out the tensors around convolutions as images [B, C, H, W], and so turns maps [B, H, W, C].

    In a training step of vmamba_tiny_s1l8 these were 175 copies of maps.
    """
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(create_model(name), backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(torch.randn(2, 3, 64, 64))
    y.float().square().sum().backward()
    assert len(graphs) == 2     # forward and backward
    for graph in graphs:
        assert not any(node.target is torch.ops.aten.convolution.default for node in graph.graph.nodes)
        assert not GraphLowering.decide_layout_opt(graph, is_inference=False)
