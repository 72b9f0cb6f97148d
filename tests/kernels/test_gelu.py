import pytest
import torch
import torch.nn.functional as F
from vmamba_kernels import gelu_backward

from tests.kernels.support.checks import check_close, tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(3, 700), (7,), (0, 4)])
def test_against_autograd(size, dtype, device):
    torch.manual_seed(0)
    x, dy = (4 * torch.randn(2, *size, device=device)).to(dtype)
    truth = x.double().requires_grad_()
    expected = F.gelu(truth)
    expected.backward(dy.double())
    y, dx = gelu_backward(dy, x)
    limit = tolerance(dtype, device)
    check_close("GELU", y, expected.detach(), limit)
    check_close("gradient", dx, truth.grad, limit)
    assert y.dtype == dx.dtype == dtype


def test_other_shape_is_refused(device):
    with pytest.raises(ValueError, match="dy has shape"):
        gelu_backward(torch.zeros(3, device=device), torch.zeros(4, device=device))
