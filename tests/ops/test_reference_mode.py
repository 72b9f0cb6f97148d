"""The references can be differentiated twice, and whole models with them inside ``ReferenceOperators``."""
import pytest
import timm
import torch

from tests.ops.test_ss2d_scan import random_order
from tests.support.scans import selective_scan_arguments, ss2d_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import (
    ReferenceOperators,
    depthwise_conv_add,
    selective_scan,
    ss2d_mixer,
    ss2d_scan,
    ss2d_scan_norm,
    ssd_scan,
)
from vmamba.scans import scan_order

# between them every operator, and attention
MODELS = ["test_vmamba", "test_vim", "test_localvim", "test_spatial_mamba", "test_msvmamba", "test_plainmamba",
          "test_mambavision", "test_vmamba_m2", "test_vssd", "test_a2mamba"]


@pytest.mark.parametrize("states", [1, 2])
def test_selective_scan_gradgradcheck(states):
    arguments = selective_scan_arguments(batch=1, channels=2, length=3, states=states, dtype=torch.float64)
    names = [name for name, value in arguments.items() if torch.is_tensor(value)]

    def scan(*tensors):
        return selective_scan(
            **{**arguments, **dict(zip(names, tensors, strict=True))}, return_last_state=True, backend="reference")

    assert torch.autograd.gradgradcheck(scan, [arguments[name] for name in names], fast_mode=True)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("order", [scan_order("cross", (2, 2)), random_order(2, 2, 4, padding=1, skipped=1)],
                         ids=["cross", "table"])
def test_ss2d_scan_gradgradcheck(order, own):
    arguments = ss2d_arguments(
        batch=1, height=2, width=2, channels=2, states=1, rank=1, dtype=torch.float64, own=own)
    assert torch.autograd.gradgradcheck(lambda *a: ss2d_scan(*a, order, backend="reference"), arguments, fast_mode=True)


def test_ss2d_scan_norm_gradgradcheck():
    arguments = ss2d_arguments(
        batch=1, height=1, width=3, channels=3, directions=2, states=1, rank=1, dtype=torch.float64)
    norm = (torch.rand(3, dtype=torch.float64, requires_grad=True), torch.rand(3, dtype=torch.float64))
    gate = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)

    def scan(gate, *scanned):
        return ss2d_scan_norm(*scanned, scan_order("bidi", (1, 3)), *norm, gate, backend="reference")

    assert torch.autograd.gradgradcheck(scan, (gate, *arguments), fast_mode=True)


@pytest.mark.parametrize("causal", [True, False])
def test_ssd_scan_gradgradcheck(causal):
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    x, dt, B, C, D = normal(1, 3, 2, 2), normal(1, 3, 2), normal(1, 3, 1, 2), normal(1, 3, 1, 2), normal(2)
    A = (-torch.rand(2, dtype=torch.float64)).requires_grad_()

    def scan(*arguments):
        return ssd_scan(*arguments, dt_softplus=True, causal=causal, backend="reference")

    assert torch.autograd.gradgradcheck(scan, (x, dt, A, B, C, D), fast_mode=True)


def test_operators_that_models_call_on_a_gpu_only():
    """Inside, they compute the same, and their gradients can be differentiated."""
    g = torch.Generator().manual_seed(0)
    x, in_weight, conv_weight, proj_weight, dt_weight, A_log, norm_weight, norm_bias, out_weight = (
        (0.5 * torch.randn(shape, generator=g, dtype=torch.float64)).requires_grad_()
        for shape in ((1, 1, 3, 2), (2, 2), (2, 1, 3, 3), (6, 2), (2, 2, 1), (2, 2, 1), (2,), (2,), (2, 2)))

    def mixer(*t):
        return ss2d_mixer(t[0], t[1], t[2], None, t[3], t[4], None, t[5], None, *t[6:], order="bidi")

    for run, arguments in (
            (mixer, (x, in_weight, conv_weight, proj_weight, dt_weight, A_log, norm_weight, norm_bias, out_weight)),
            (depthwise_conv_add, (x, conv_weight))):
        expected = run(*arguments)
        with ReferenceOperators():
            assert_close(run(*arguments), expected)
            assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    """Inside, a model computes the same, and its second derivative along a line is that of differences."""
    model = timm.create_model(name).eval().double()
    image, step = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64).unbind(0)

    def slope(along):
        score = model(image + along * step)[0, 3]
        return score, torch.autograd.grad(score, along, create_graph=True)[0]

    at = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = model(image + at * step)[0, 3]
    with ReferenceOperators():
        score, first = slope(at)
        assert_close(score, expected)
        curvature, = torch.autograd.grad(first, at)
        after, before = (slope((at.detach() + shift).requires_grad_())[1] for shift in (1e-7, -1e-7))
    # a step so small that no ReLU changes sides; what is left is the rounding of the slopes over the step
    torch.testing.assert_close(curvature, (after - before) / 2e-7, rtol=1e-5, atol=1e-6)


def test_switched_off_it_leaves_the_operators_alone():
    model = timm.create_model("test_vmamba").eval()
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    with ReferenceOperators(enabled=False):
        score = model(image)[0, 0]
    with pytest.raises(RuntimeError):       # the fast backward cannot be differentiated
        torch.autograd.grad(score, image, create_graph=True)


@pytest.mark.gpu
def test_it_sees_the_calls_that_leave_out_the_dispatcher():
    model = timm.create_model("test_vmamba").eval().cuda()
    image = torch.randn(1, 3, 32, 32, device="cuda", requires_grad=True)
    with ReferenceOperators():
        score = model(image)[0, 0]
    gradient, = torch.autograd.grad(score, image, create_graph=True)
    gradient.square().sum().backward()
    assert torch.isfinite(image.grad).all()
