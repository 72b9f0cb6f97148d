"""residual_block: the operators of a block of VMamba in a row, as one node of autograd."""
import pytest
import torch

from tests.support.tolerances import assert_close
from vmamba.ops import add_layer_norm, mlp, ss2d_mixer
from vmamba.ops.residual_block import residual_block

B, C, D, H, R, K = 2, 6, 8, 10, 2, 4
NORM = ((C,), (C,))
MIXER = ((D, C), (D, 1, 3, 3), (D,), (K * (R + 2), D), (K, D, R), (K, D), (K, D, 1), (K, D), (D,), (D,), (C, D))
MLP = ((H, C), (H,), (C, H), (C,))
KINDS = {  # backend, dtype of maps, dtype of weights
    "torch": ("torch", torch.float64, torch.float64), "triton": ("triton", torch.float32, torch.float32),
    "torch_autocast": ("torch", torch.bfloat16, torch.float32),
    "triton_autocast": ("triton", torch.bfloat16, torch.float32),
    "triton_bfloat16": ("triton", torch.bfloat16, torch.bfloat16)}


def given(kind, branched, scaled, bias):
    backend, dtype, weight_dtype = KINDS[kind]
    g = torch.Generator().manual_seed(0)
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"

    def make(shape, dtype=weight_dtype):
        return (0.5 * torch.randn(shape, generator=g)).to(device, dtype).requires_grad_()

    x, branch = (make((B, 3, 5, C), dtype) for _ in range(2))
    scale = torch.tensor([0.0, 1.5], device=device)
    norm1, mixer, norm2, of_mlp = (tuple(map(make, shapes)) for shapes in (NORM, MIXER, NORM, MLP))
    mixer = (*mixer[:2], mixer[2] if bias else None, *mixer[3:])
    return (
        x, branch if branched else None, (scale if branched and scaled else None, scale.flip(0) if scaled else None),
        norm1, mixer, norm2, of_mlp)


def in_parts(x, branch, scales, norm1, mixer, norm2, of_mlp, order, eps, backend):
    x, y = add_layer_norm(x, branch, *norm1, scale=scales[0], eps=eps, backend=backend)
    mixed = ss2d_mixer(y, *mixer, order=order, eps=eps, backend=backend)
    x, y = add_layer_norm(x, mixed, *norm2, scale=scales[1], eps=eps, backend=backend)
    return x, mlp(y, *of_mlp, backend=backend)


def differentiate(outputs, inputs):
    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=g).to(t.device, t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, inputs, cotangents)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("branched", "scaled", "bias"), [
    (True, True, True), (True, False, False), (False, True, False), (False, False, True)])
def test_it_is_its_operators(branched, scaled, bias, kind):
    x, branch, _scales, *weights = arguments = given(kind, branched, scaled, bias)
    inputs = [t for t in (x, branch, *(w for group in weights for w in group)) if t is not None]
    how = ("cross", 1e-3, KINDS[kind][0])
    expected = in_parts(*arguments, *how)
    outputs = residual_block(*arguments, *how)
    narrow = KINDS[kind][1] is torch.bfloat16
    for got, truth in zip((*outputs, *differentiate(outputs, inputs)), (*expected, *differentiate(expected, inputs)),
                          strict=True):
        assert got.dtype is truth.dtype
        if narrow:  # gradients to x are added in another order
            torch.testing.assert_close(got, truth, rtol=2e-2, atol=2e-2 * truth.abs().max().item())
        else:
            assert_close(got, truth.double())


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_of_its_results_alone_can_be_differentiated(wanted):
    x, branch, _scales, *weights = arguments = given("torch", True, True, True)
    how = ("cross", 1e-3, "torch")
    got = differentiate(residual_block(*arguments, *how)[wanted:wanted + 1], [x, branch, *weights[1][:2]])
    expected = differentiate(in_parts(*arguments, *how)[wanted:wanted + 1], [x, branch, *weights[1][:2]])
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)
