import pytest
import torch
import torch.nn.functional as F

from vmamba.layers import Conv2dNHWC, DepthwiseConvAdd, conv


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "as on a GPU"])
def test_map_and_convolution_are_added(gpu, monkeypatch):
    torch.manual_seed(0)
    calls = []
    operator = conv.depthwise_conv_add
    monkeypatch.setattr(conv, "runs_alone_on_gpu", lambda x: gpu)
    monkeypatch.setattr(conv, "depthwise_conv_add", lambda *given: calls.append(1) or operator(*given))
    module = DepthwiseConvAdd(8).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    inputs = (x, *module.parameters())
    got = module(x)
    assert len(calls) == gpu
    expected = x + F.conv2d(x.permute(0, 3, 1, 2), module.weight, module.bias, padding=1, groups=8).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(x)
    for a, b in zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent),
                    strict=True):
        torch.testing.assert_close(a, b)


def test_it_can_be_scripted():
    module, x = DepthwiseConvAdd(8), torch.randn(1, 3, 5, 8)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize("how", [{}, {"bias": False}, {"stride": 2}, {"padding": 1}, {"groups": 4}], ids=str)
def test_a_kernel_of_one_pixel(how):
    module, x = Conv2dNHWC(8, 12, 1, **how).double(), torch.randn(2, 5, 4, 8, dtype=torch.float64)
    expected = torch.nn.Conv2d.forward(module, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(torch.jit.script(module)(x), expected)


@pytest.mark.parametrize("how", [{}, {"bias": False}, {"stride": 2}, {"groups": 4}, {"dilation": 2}], ids=str)
def test_compiled_for_a_gpu_it_is_an_operator(how, monkeypatch):
    """A compiler that meets torch's convolution may lay out all maps around it anew."""
    torch.manual_seed(0)
    module = Conv2dNHWC(8, 12, 3, padding=1, **how)
    x = torch.randn(2, 5, 4, 8, requires_grad=True)
    inputs = (x, *module.parameters())
    expected = module(x)
    monkeypatch.setattr(conv, "is_compiled_for_gpu", lambda _: torch.compiler.is_dynamo_compiling())
    graphs = []
    torch._dynamo.reset()
    got = torch.compile(module, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)(x)
    assert [str(node.target) for node in graphs[0].graph.nodes if "conv" in str(node.target)] == ["vmamba.conv2d"]
    torch.testing.assert_close(got, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent),
                    strict=True):
        torch.testing.assert_close(a, b)
