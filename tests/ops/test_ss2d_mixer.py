"""ss2d_mixer: the operators between two projections, as one."""
import pytest
import torch
import torch.nn.functional as F

from tests.support.tolerances import assert_close
from vmamba.ops import depthwise_conv_silu, ss2d_mixer, ss2d_scan_norm
from vmamba.scans import scan_order

NAMES = ("x", "in_weight", "conv_weight", "conv_bias", "proj_weight", "dt_weight", "dt_bias", "A_log", "D_skip",
         "norm_weight", "norm_bias", "out_weight")
DTYPES = {"torch": torch.float64, "triton": torch.float32}


def arguments(backend, states=1, directions=4, absent=(), dtype=None):
    g = torch.Generator().manual_seed(0)
    C, D, E, R, K = 6, 8, 5, 2, directions
    shapes = ((2, 3, 5, C), (D, C), (D, 1, 3, 3), (D,), (K * (R + 2 * states), D), (K, D, R), (K, D), (K, D, states),
              (K, D), (D,), (D,), (E, D))
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    return {
        name: None if name in absent else (0.5 * torch.randn(shape, generator=g)).to(
            device, dtype or DTYPES[backend]).requires_grad_()
        for name, shape in zip(NAMES, shapes, strict=True)}


def in_parts(x, in_weight, conv_weight, conv_bias, proj_weight, dt_weight, dt_bias, A_log, D_skip, norm_weight,
             norm_bias, out_weight, order, eps, backend):
    batch, height, width, _ = x.shape
    tokens = depthwise_conv_silu(F.linear(x, in_weight), conv_weight, conv_bias, backend=backend).flatten(1, 2)
    proj = F.linear(tokens, proj_weight).view(batch, height * width, len(dt_weight), -1)
    walk = scan_order(order, (height, width), len(dt_weight), x.device)
    y = ss2d_scan_norm(
        tokens, proj, dt_weight, dt_bias, A_log, D_skip, walk, norm_weight, norm_bias, eps=eps, backend=backend)
    return F.linear(y, out_weight).view(batch, height, width, -1)


@pytest.mark.parametrize("backend", DTYPES)
@pytest.mark.parametrize(("order", "directions", "states", "absent"), [
    ("cross", 4, 1, ("conv_bias",)), ("cross", 4, 3, ()), ("bidi", 2, 1, ("dt_bias", "D_skip")),
    ("hilbert4", 4, 1, ("conv_bias",)),
])
def test_it_is_its_parts(order, directions, states, absent, backend):
    given = arguments(backend, states, directions, absent)
    inputs = [t for t in given.values() if t is not None]
    expected = in_parts(*given.values(), order, 1e-3, backend)
    y = ss2d_mixer(*given.values(), order=order, eps=1e-3, backend=backend)
    assert_close(y, expected.double())
    cotangent = torch.randn_like(y)
    for got, truth in zip(torch.autograd.grad(y, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent),
                          strict=True):
        assert_close(got, truth.double())
    with torch.no_grad():
        assert_close(ss2d_mixer(*given.values(), order=order, eps=1e-3, backend=backend), expected.double())


@pytest.mark.parametrize("backend", DTYPES)
@pytest.mark.parametrize("absent", [(), ("conv_bias", "dt_bias", "D_skip")])
def test_opcheck(absent, backend):
    given = arguments(backend, absent=absent, dtype=torch.float32)
    torch.library.opcheck(torch.ops.vmamba.ss2d_mixer, (*given.values(), "cross", 1e-5, backend, True))


def test_opcheck_of_narrow_tokens():
    given = arguments("torch", dtype=torch.float32)
    given["x"] = given["x"].detach().bfloat16().requires_grad_()
    torch.library.opcheck(
        torch.ops.vmamba.ss2d_mixer, (*given.values(), "cross", 1e-5, "torch", True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_autocast_sets_the_dtype_and_leaves_that_of_the_gradients():
    given = arguments("torch", dtype=torch.float32)
    expected = in_parts(*given.values(), "cross", 1e-5, "torch")
    with torch.autocast("cpu", torch.bfloat16):
        y = ss2d_mixer(*given.values(), order="cross")
    assert y.dtype == torch.bfloat16
    assert_close(y, expected.double(), dtype=torch.bfloat16)
    cotangent = torch.randn_like(expected)
    for got, truth in zip(torch.autograd.grad(y, given.values(), cotangent.bfloat16()),
                          torch.autograd.grad(expected, given.values(), cotangent), strict=True):
        assert got.dtype == torch.float32
        assert (got - truth).norm() < 0.03 * truth.norm()


def test_a_gradient_without_what_it_needs_is_refused():
    given = arguments("torch")
    with pytest.raises(RuntimeError, match="save=False"):
        torch.ops.vmamba.ss2d_mixer(*given.values(), "cross", 1e-5, "torch", False)


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("x", (2, 15, 6), "x has shape"), ("in_weight", (8, 7), "in_weight has shape"),
    ("proj_weight", (16, 7), "proj_weight has shape"), ("proj_weight", (18, 8), "cannot share"),
    ("out_weight", (5, 7), "out_weight has shape"), ("conv_weight", (8, 1, 5, 5), "weight has shape"),
    ("norm_weight", (7,), "norm_weight has shape"),
])
def test_wrong_arguments_name_themselves(name, shape, message):
    given = {**arguments("torch"), name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        ss2d_mixer(*given.values(), order="cross")
