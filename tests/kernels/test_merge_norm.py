import pytest
import torch
from vmamba_kernels import merge_norm_backward, merge_norm_forward

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
    out, saved = merge_norm_forward(parts, weight, bias, gate=z, save=True)
    limit = tolerance(dtype, device)
    check_close("out", out, expected.detach(), limit)
    assert merge_norm_forward(parts, weight, bias, gate=z)[1] is None
    dout = torch.randn_like(out)
    expected.backward(dout.double())
    got = merge_norm_backward(dout, saved, weight, bias, gate=z)
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
