"""Operators called at once, as CUDA tensors have them in plain eager mode, against the dispatcher's."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmamba.ops import _library
from vmamba.ops.add_layer_norm import add_layer_norm_call
from vmamba.ops.depthwise_conv_add import _call as depthwise_conv_add_call
from vmamba.ops.depthwise_conv_silu import depthwise_conv_silu_call
from vmamba.ops.mlp import mlp_call
from vmamba.ops.ss2d_mixer import _mixer
from vmamba.ops.ss2d_scan_norm import ss2d_scan_norm_call

OPS = torch.ops.vmamba
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Calls the implementations of all tensors at once but under a mode; what kernels would check is right here."""
    monkeypatch.setattr(
        _library, "is_plain", lambda x: type(x) is torch.Tensor and not torch._C._len_torch_dispatch_stack())


def _cases(backend, dtype):
    """Name -> (call, operator, arguments, number of its outputs that callers take); parameters are float32."""
    def leaf(*shape, dtype=torch.float32):
        return torch.randn(shape).to(DEVICE, dtype).requires_grad_()

    x, tokens, proj = leaf(2, 3, 4, 8, dtype=dtype), leaf(2, 12, 8, dtype=dtype), leaf(2, 12, 4, 4, dtype=dtype)
    vector, conv, square = leaf(8), leaf(8, 1, 3, 3), leaf(8, 8)
    scale = torch.rand(2, device=DEVICE)
    scan = leaf(4, 8, 2), None, leaf(4, 8, 1), None
    return {
        "norm": (add_layer_norm_call, OPS.add_layer_norm, (x, None, None, vector, vector, 1e-5, backend), 2),
        "add_norm": (
            add_layer_norm_call, OPS.add_layer_norm,
            (x, leaf(2, 3, 4, 8, dtype=dtype), scale, vector, vector, 1e-5, backend), 2),
        "conv_add": (depthwise_conv_add_call, OPS.depthwise_conv_add, (x, conv, None, backend), 0),
        "conv_silu": (depthwise_conv_silu_call, OPS.depthwise_conv_silu, (x, conv, None, backend), 1),
        "mlp": (mlp_call, OPS.mlp, (x, leaf(5, 8), leaf(5), leaf(8, 5), vector, backend), 1),
        "scan_norm": (
            ss2d_scan_norm_call, OPS.ss2d_scan_norm,
            (tokens, proj, *scan, "cross", 3, 4, None, vector, vector, None, 1e-5, backend), 0),
        "mixer": (
            _mixer, OPS.ss2d_mixer,
            (x, square, conv, None, leaf(16, 8), *scan, vector, vector, square, "cross", 1e-5, backend, True), 1),
    }


NAMES = tuple(_cases("torch", torch.float32))


def _results(outputs, count):
    return [t for t in outputs[:count] if t is not None and t.numel()] if count else [outputs]


def _gradients(outputs, arguments):
    leaves = [t for t in arguments if isinstance(t, torch.Tensor) and t.requires_grad]
    return torch.autograd.grad(sum(t.float().square().sum() for t in outputs), leaves, allow_unused=True)


@pytest.mark.parametrize(("dtype", "backend"), [(torch.float32, "torch"), (torch.bfloat16, "triton")])
@pytest.mark.parametrize("name", NAMES)
def test_results_and_gradients_are_the_operators(name, dtype, backend):
    call, op, arguments, count = _cases(backend, dtype)[name]
    got, expected = _results(call(*arguments), count), _results(op(*arguments), count)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    gradients = zip(_gradients(got, arguments), _gradients(expected, arguments), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(_results(call(*arguments), count), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_mode_that_comes_for_the_backward_sees_the_operator(name):
    call, _, arguments, count = _cases("torch", torch.bfloat16)[name]
    outputs, again = (_results(call(*arguments), count) for _ in range(2))
    expected = _gradients(outputs, arguments)
    with FlopCounterMode(display=False):
        for got, truth in zip(_gradients(again, arguments), expected, strict=True):
            torch.testing.assert_close(got, truth, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_refused(name):
    call, _, arguments, count = _cases("torch", torch.float32)[name]
    total = sum(t.square().sum() for t in _results(call(*arguments), count))
    [gradient] = torch.autograd.grad(total, arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_tensors_that_outlived_a_transform_take_the_dispatchers_way(monkeypatch):
    monkeypatch.undo()
    kept = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(torch.ones(2, 3, 4, 8, device=DEVICE))
    assert not _library.is_plain(kept[0])
    assert _library.is_plain(torch.ones(3, device=DEVICE)) == (DEVICE == "cuda")
