import pytest
import torch
import torch.nn.functional as F
from vmamba_kernels import gelu_backward

from tests.kernels.support.checks import check_close, tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 700), (150, 70), (5000, 3), (0, 4)])
def test_against_autograd(size, dtype, device):
    torch.manual_seed(0)
    x, dy = (4 * torch.randn(2, *size, device=device)).to(dtype)
    truth = x.double().requires_grad_()
    expected = F.gelu(truth)
    expected.backward(dy.double())
    y, dx, dbias = gelu_backward(dy, x)
    limit = tolerance(dtype, device)
    check_close("GELU", y, expected.detach(), limit)
    check_close("gradient", dx, truth.grad, limit)
    check_close("sum of the gradient", dbias, truth.grad.sum(0), 1e-5)
    assert y.dtype == dx.dtype == dtype
    assert dbias.dtype == torch.float32


def test_other_shapes_are_refused(device):
    with pytest.raises(ValueError, match="dy has shape"):
        gelu_backward(torch.zeros(3, 1, device=device), torch.zeros(4, 1, device=device))
    with pytest.raises(ValueError, match=r"x has shape \(4,\), expected \(rows, C\)"):
        gelu_backward(torch.zeros(4, device=device), torch.zeros(4, device=device))
