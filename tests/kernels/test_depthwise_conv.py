import pytest
import torch
import torch.nn.functional as F
from vmamba_kernels import (
    depthwise_conv_add_backward,
    depthwise_conv_add_forward,
    depthwise_conv_silu_backward,
    depthwise_conv_silu_forward,
)

from tests.kernels.support.checks import check_close, tolerance

KERNELS = {"silu": (depthwise_conv_silu_forward, depthwise_conv_silu_backward),
           "add": (depthwise_conv_add_forward, depthwise_conv_add_backward)}


def check(B, H, W, C, dtype, device, bias, kind, sliced=False):
    forward, backward = KERNELS[kind]
    torch.manual_seed(0)
    wide = torch.randn(B, H, W, 2 * C if sliced else C, device=device).to(dtype)
    x = wide[..., :C]
    weight = torch.randn(C, 1, 3, 3, device=device) / 3
    shift = torch.randn(C, device=device) if bias else None
    truth = [t.detach().double().requires_grad_() if t is not None else None for t in (x, weight, shift)]
    conv = F.conv2d(truth[0].permute(0, 3, 1, 2), truth[1], truth[2], padding=1, groups=C)
    conv = conv.permute(0, 2, 3, 1)
    expected = F.silu(conv) if kind == "silu" else truth[0] + conv
    limit = tolerance(dtype, device)
    out = forward(x, weight, shift)
    assert out.dtype == dtype
    assert out.is_contiguous()
    check_close("out", out, expected.detach(), limit)
    dy = torch.randn_like(out)
    expected.backward(dy.double())
    got = backward(dy, x, weight, shift)
    for name, gradient, source in zip(("x", "weight", "bias"), got, truth, strict=True):
        if source is None:
            assert gradient is None
        else:
            check_close(f"gradient to {name}", gradient, source.grad, limit)
    again = backward(dy, x, weight, shift)
    for one, two in zip(got, again, strict=True):
        assert one is None or torch.equal(one, two)


@pytest.mark.parametrize(("H", "W", "C"), [(9, 11, 40), (1, 1, 32), (5, 3, 64), (1, 9, 33)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KERNELS)
def test_against_convolution(H, W, C, bias, kind, device):
    check(2, H, W, C, torch.float32, device, bias, kind)


@pytest.mark.parametrize("kind", KERNELS)
def test_slice_of_wider_tokens(kind, device):
    check(1, 5, 6, 32, torch.float32, device, True, kind, sliced=True)


@pytest.mark.parametrize("kind", KERNELS)
def test_bfloat16(kind, device):
    check(1, 6, 9, 32, torch.bfloat16, device, True, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("B", "H", "W", "C"), [(2, 56, 56, 96), (3, 7, 7, 768), (1, 131, 77, 192), (1, 3, 3, 100)])
@pytest.mark.parametrize("kind", KERNELS)
def test_sizes(B, H, W, C, dtype, kind):
    check(B, H, W, C, dtype, "cuda", True, kind, sliced=True)


def test_wrong_shapes_are_refused(device):
    x = torch.zeros(1, 4, 4, 32, device=device)
    with pytest.raises(ValueError, match=r"weight has shape .* \(C, 1, 3, 3\)"):
        depthwise_conv_silu_forward(x, torch.zeros(32, 1, 5, 5, device=device), None)
    with pytest.raises(ValueError, match="4 axes"):
        depthwise_conv_silu_forward(x[0], torch.zeros(32, 1, 3, 3, device=device), None)


@pytest.mark.parametrize("kind", KERNELS)
def test_no_images(kind, device):
    forward, backward = KERNELS[kind]
    x, weight = torch.zeros(0, 4, 4, 32, device=device), torch.ones(32, 1, 3, 3, device=device)
    out = forward(x, weight, None)
    got = backward(out, x, weight, None)
    assert out.shape == got.x.shape == x.shape
    assert torch.equal(got.weight, torch.zeros_like(weight))
