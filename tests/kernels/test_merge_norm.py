import pytest
import torch
from vmamba_kernels import add_norm_backward, add_norm_forward, merge_norm_backward, merge_norm_forward

from tests.kernels.support.checks import check_close, merge_norm_reference, tolerance


def check(B, K, L, D, dtype, device, gate, affine):
    parts = torch.randn(B, K, L, D, device=device).to(dtype)
    weight = torch.randn(D, device=device) if affine else None
    bias = torch.randn(D, device=device) if affine else None
    wide = torch.randn(B, L, 2 * D, device=device).to(dtype)
    z = wide[..., D:] if gate else None
    inputs = (parts, weight, bias, z)
    truth = [t.detach().double().requires_grad_() if t is not None else None for t in inputs]
    expected = merge_norm_reference(*truth)
    out, merged = merge_norm_forward(parts, weight, bias, gate=z, save=True)
    limit = tolerance(dtype, device)
    check_close("out", out, expected.detach(), limit)
    assert merge_norm_forward(parts, weight, bias, gate=z)[1] is None
    dout = torch.randn_like(out)
    expected.backward(dout.double())
    got = merge_norm_backward(dout, merged, weight, bias, gate=z)
    check_close("gradient to the sum", got.merged, truth[0].grad[:, 0], limit)
    for name, gradient, source in zip(("weight", "bias", "gate"), got[1:], truth[1:], strict=True):
        if source is None:
            assert gradient is None
        else:
            check_close(f"gradient to {name}", gradient, source.grad, limit)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("B", "K", "L", "D", "affine"), [(2, 4, 7, 40, True), (1, 1, 3, 5, False)])
def test_against_layer_norm(B, K, L, D, affine, gate, device):
    check(B, K, L, D, torch.float32, device, gate, affine)


def test_bfloat16(device):
    check(1, 4, 5, 32, torch.bfloat16, device, True, True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("D", "L"), [(16, 3), (96, 3136), (100, 49), (768, 49), (1536, 10)])
@pytest.mark.parametrize("gate", [False, True])
def test_widths(D, L, dtype, gate):
    check(3, 4, L, D, dtype, "cuda", gate, D != 16)


def check_sum(B, L, D, dtype, device, branch, scale):
    torch.manual_seed(0)
    x = torch.randn(B, L, D, device=device).to(dtype)
    other = torch.randn(B, L, D, device=device).to(dtype) if branch else None
    factors = torch.tensor([0.0, 1.25, 1.0], device=device)[:B] if scale else None
    weight, bias = torch.randn(2, D, device=device)
    inputs = (x, other, weight, bias)
    truth = [t.detach().double().requires_grad_() if t is not None else None for t in inputs]
    expected = truth[0]
    if branch:
        expected = expected + (factors.double()[:, None, None] if scale else 1.0) * truth[1]
    normed = torch.nn.functional.layer_norm(expected, (D,), truth[2], truth[3], 1e-5)

    total, out = add_norm_forward(x, other, factors, weight, bias)
    limit = tolerance(dtype, device)
    check_close("sum", total, expected.detach(), limit)
    check_close("norm", out, normed.detach(), limit)
    assert total.dtype == out.dtype == dtype
    dtotal, dout = torch.randn_like(out), torch.randn_like(out)
    torch.autograd.backward([expected, normed], [dtotal.double(), dout.double()])
    got = add_norm_backward(dout, dtotal, total, factors, weight, bias)
    names = ("x", "branch", "weight", "bias")
    for name, gradient, source in zip(names, got, truth, strict=True):
        if source is not None:
            check_close(f"gradient to {name}", gradient, source.grad, limit)


@pytest.mark.parametrize(("branch", "scale"), [(False, False), (True, False), (True, True)])
def test_norm_of_a_sum(branch, scale, device):
    check_sum(3, 5, 24, torch.float32, device, branch, scale)


def test_norm_of_a_sum_in_bfloat16(device):
    check_sum(2, 5, 32, torch.bfloat16, device, True, True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("D", "L"), [(16, 3), (96, 3136), (100, 49), (1536, 10)])
@pytest.mark.parametrize("scale", [False, True])
def test_norm_of_a_sum_widths(D, L, dtype, scale):
    check_sum(3, L, D, dtype, "cuda", True, scale)


def test_scale_of_other_images_is_refused(device):
    x = torch.zeros(2, 3, 16, device=device)
    with pytest.raises(ValueError, match="scale has shape"):
        add_norm_forward(x, x, torch.ones(3, device=device), x[0, 0], x[0, 0])
