"""add_layer_norm, conv2d, depthwise_conv_add, depthwise_conv_silu and mlp: what goes around the scans."""
import pytest
import torch
import torch.nn.functional as F

from tests.support.tolerances import assert_close
from vmamba.ops import add_layer_norm, depthwise_conv_add, depthwise_conv_silu, mlp
from vmamba.ops.conv2d import conv2d

BACKENDS = ("torch", "triton")


def device_of(backend):
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


def leaves(backend, *shapes, dtype=None):
    g = torch.Generator().manual_seed(0)
    dtype = dtype or (torch.float64 if backend == "torch" else torch.float32)
    return [torch.randn(s, generator=g).to(device_of(backend), dtype).requires_grad_() for s in shapes]


def compare(actual, expected, inputs, truth):
    cotangent = torch.randn_like(expected)
    assert_close(actual, expected)
    got = torch.autograd.grad(actual, inputs, cotangent.to(actual.dtype))
    for a, e in zip(got, torch.autograd.grad(expected, truth, cotangent), strict=True):
        assert_close(a, e)


def silu_reference(x, weight, bias):
    return F.silu(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3])).permute(0, 2, 3, 1)


def add_reference(x, weight, bias):
    return x + F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[3]).permute(0, 2, 3, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_add_layer_norm(scaled, backend):
    x, branch, weight, bias = inputs = leaves(backend, (2, 3, 4, 8), (2, 3, 4, 8), (8,), (8,))
    scale = torch.tensor([0.0, 1.25], device=x.device) if scaled else None
    total, y = add_layer_norm(x, branch, weight, bias, scale=scale, eps=1e-3, backend=backend)
    expected = x + (branch if scale is None else scale.to(x.dtype).view(2, 1, 1, 1) * branch)
    normed = F.layer_norm(expected, (8,), weight, bias, 1e-3)
    compare(torch.stack((total, y)), torch.stack((expected, normed)), inputs, inputs)
    only = torch.autograd.grad(
        add_layer_norm(x, branch, weight, bias, scale=scale, backend=backend)[0].sum(), (x, branch))
    factor = torch.ones_like(x) if scale is None else scale.to(x.dtype).view(2, 1, 1, 1).expand_as(x)
    for a, e in zip(only, (torch.ones_like(x), factor), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_norm_alone(backend):
    x, weight, bias = inputs = leaves(backend, (2, 5, 8), (8,), (8,))
    total, y = add_layer_norm(x, None, weight, bias, backend=backend)
    assert total is x
    compare(y, F.layer_norm(x, (8,), weight, bias), inputs, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("run", "reference"), [
    (depthwise_conv_silu, silu_reference), (depthwise_conv_add, add_reference)])
def test_depthwise_conv(run, reference, biased, backend):
    wide, weight, bias = leaves(backend, (2, 3, 5, 16), (8, 1, 3, 3), (8,))
    bias = bias if biased else None
    inputs = [t for t in (wide, weight, bias) if t is not None]
    x = wide[..., :8]
    compare(run(x, weight, bias, backend=backend), reference(x, weight, bias), inputs, inputs)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("how", [
    ((1, 1), (0, 0), (1, 1), 2), ((2, 1), (1, 2), (1, 1), 1), ((1, 2), (2, 1), (2, 1), 4)], ids=str)
@pytest.mark.parametrize("learned", ["both", "x", "weight"])
def test_conv2d(learned, how, device):
    x, weight = (t.detach().to(device) for t in leaves("torch", (2, 6, 7, 8), (12, 8 // how[3], 3, 2)))
    inputs = [t.requires_grad_() for t, name in ((x, "x"), (weight, "weight")) if learned in (name, "both")]
    actual = conv2d(x, weight, *how)
    assert actual.is_contiguous()
    stride, padding, dilation, groups = how
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, padding, dilation, groups).permute(0, 2, 3, 1)
    compare(actual, expected, inputs, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mlp(backend):
    x, weight1, bias1, weight2, bias2 = inputs = leaves(backend, (2, 3, 4, 8), (6, 8), (6,), (5, 6), (5,))
    expected = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    compare(mlp(*inputs, backend=backend), expected, inputs, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [
    "add_layer_norm", "layer_norm", "depthwise_conv_add", "depthwise_conv_silu", "mlp",
    "narrow_mlp"])
def test_opcheck(name, backend):
    ops = torch.ops.vmamba
    x, branch, vector, weight, matrix, short = leaves(
        backend, (2, 3, 4, 8), (2, 3, 4, 8), (8,), (8, 1, 3, 3), (5, 8), (5,), dtype=torch.float32)
    op, arguments = {
        "add_layer_norm": (ops.add_layer_norm, (x, branch, x.new_ones(2).detach(), vector, vector, 1e-5, backend)),
        "layer_norm": (ops.add_layer_norm, (x, None, None, vector, vector, 1e-5, backend)),
        "depthwise_conv_add": (ops.depthwise_conv_add, (x, weight, vector, backend)),
        "depthwise_conv_silu": (ops.depthwise_conv_silu, (x, weight, vector, backend)),
        "mlp": (ops.mlp, (x, matrix, short, matrix.mT.contiguous(), vector, backend)),
        "narrow_mlp": (ops.mlp, (x.bfloat16(), matrix, short, matrix.mT, vector, backend)),
    }[name]
    torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("need_x", [False, True])
def test_opcheck_conv2d(need_x):
    x, weight = leaves("torch", (2, 3, 4, 8), (6, 4, 3, 3), dtype=torch.float32)
    how = ([2, 2], [1, 1], [1, 1], 2)
    torch.library.opcheck(torch.ops.vmamba.conv2d, (x.requires_grad_(need_x), weight, *how))
    dy = torch.randn(2, 2, 2, 6)
    torch.library.opcheck(
        torch.ops.vmamba.conv2d_backward, (dy, x.detach(), weight.detach(), *how, need_x, True),
        test_utils=("test_schema", "test_faketensor"))


def test_autocast_sets_the_dtype():
    x, branch, vector, weight, matrix, short = leaves(
        "torch", (2, 3, 4, 8), (2, 3, 4, 8), (8,), (8, 1, 3, 3), (5, 8), (5,), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        results = [
            *add_layer_norm(x, branch, vector, vector), depthwise_conv_silu(x, weight),
            depthwise_conv_add(x, weight), mlp(x, matrix, short, matrix.mT, vector),
            conv2d(x, weight, (1, 1), (1, 1), (1, 1), 8)]
    assert {r.dtype for r in results} == {torch.bfloat16}
    expected = F.layer_norm(x + branch, (8,), vector, vector)
    assert_close(results[1], expected.double(), dtype=torch.bfloat16)
    for gradient in torch.autograd.grad(sum(r.sum() for r in results), (x, branch, vector, weight, matrix, short)):
        assert gradient.dtype == torch.float32
        assert gradient.isfinite().all()
    double = x.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert add_layer_norm(double, None, vector.double(), vector.double())[1].dtype == torch.float64


def test_autocast_reaches_compiled_graphs():
    x, weight = leaves("torch", (1, 4, 4, 8), (8, 1, 3, 3), dtype=torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return depthwise_conv_silu(x, weight)

    assert run(x, weight).dtype == torch.bfloat16


@pytest.mark.parametrize(("call", "message"), [
    (lambda t: add_layer_norm(t, t[:1], t[0, 0, 0], t[0, 0, 0]), "branch has shape"),
    (lambda t: add_layer_norm(t, t.double(), t[0, 0, 0], t[0, 0, 0]), "branch has dtype"),
    (lambda t: add_layer_norm(t, None, t[0, 0, 0], t[0, 0, 0], scale=t[:, 0, 0, 0]), "scale is of branch"),
    (lambda t: add_layer_norm(t, None, t[0, 0, 0, :3], t[0, 0, 0]), "weight has shape"),
    (lambda t: depthwise_conv_silu(t[0], t), "x has shape"),
    (lambda t: depthwise_conv_silu(t, torch.zeros(8, 1, 5, 5)), "weight has shape"),
    (lambda t: depthwise_conv_add(t, torch.zeros(8, 1, 5, 5)), "weight has shape"),
    (lambda t: conv2d(t, torch.zeros(8, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1), "x has shape"),
    (lambda t: conv2d(t, torch.zeros(8, 8), (1, 1), (1, 1), (1, 1), 1), "weight has shape"),
    (lambda t: mlp(t, torch.zeros(5, 7), torch.zeros(5), torch.zeros(3, 5), torch.zeros(3)), "weight1 has shape"),
    (lambda t: mlp(t, torch.zeros(5, 8), torch.zeros(4), torch.zeros(3, 5), torch.zeros(3)), "bias1 has shape"),
    (lambda t: mlp(t, torch.zeros(5, 8), torch.zeros(5), torch.zeros(3, 4), torch.zeros(3)), "weight2 has shape"),
    (lambda t: mlp(t, torch.zeros(5, 8), torch.zeros(5), torch.zeros(3, 5), torch.zeros(5)), "bias2 has shape"),
])
def test_wrong_arguments_name_themselves(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 4, 8))
