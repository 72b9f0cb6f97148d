import pytest
import torch

from tests.support.scans import gradients, ss2d_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import ss2d_scan, ss2d_scan_norm
from vmamba.scans import ScanOrder, scan_order


def norm_arguments(x, gate=True, seed=3):
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (torch.randn(x.shape[2], generator=g, dtype=torch.float64).to(wide) for _ in range(2))
    z = torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) if gate else None
    return tuple(t.requires_grad_() if t is not None else None for t in (weight, bias, z))


def run(arguments, norm, order, backend):
    y = ss2d_scan_norm(*arguments, order, *norm, backend=backend)
    return (y, *gradients(y, (*arguments, *norm)))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("states", [1, 2])
def test_matches_reference(states, gate, backend):
    dtype = torch.float64 if backend == "torch" else torch.float32
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    arguments = ss2d_arguments(states=states, channels=8, dtype=dtype)
    arguments = tuple(a.detach().to(device).requires_grad_() for a in arguments)
    norm = tuple(t.detach().to(device).requires_grad_() if t is not None else None
                 for t in norm_arguments(arguments[0], gate))
    order = scan_order("cross", (3, 5))
    for actual, expected in zip(
            run(arguments, norm, order, backend), run(arguments, norm, order, "reference"), strict=True):
        assert_close(actual, expected)


def test_is_the_scan_then_the_norm_then_the_gate():
    arguments = ss2d_arguments(channels=8)
    weight, bias, gate = norm_arguments(arguments[0])
    order = ScanOrder("table", (3, 5), torch.stack([torch.randperm(15) for _ in range(4)]).int(), 15)
    merged = ss2d_scan(*arguments, order)
    expected = torch.nn.functional.layer_norm(merged, (8,), weight, bias, 1e-3) * torch.nn.functional.silu(gate)
    assert_close(ss2d_scan_norm(*arguments, order, weight, bias, gate, eps=1e-3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_matches_float64(dtype):
    arguments = ss2d_arguments(height=9, width=8, dtype=dtype, channels=8)
    norm = norm_arguments(arguments[0])
    wide = [tuple(t.detach().double().requires_grad_() for t in ts) for ts in (arguments, norm)]
    order = scan_order("cross", (9, 8))
    actual = run(arguments, norm, order, "torch")
    assert actual[0].dtype == dtype
    for a, e in zip(actual, run(*wide, order, "reference"), strict=True):
        assert_close(a, e, dtype=dtype)


@pytest.mark.parametrize("gate", [True, False])
def test_gradcheck(gate):
    arguments = ss2d_arguments(batch=1, height=2, width=3, channels=3, dtype=torch.float64)
    norm = norm_arguments(arguments[0], gate)
    order = scan_order("cross", (2, 3))
    assert torch.autograd.gradcheck(
        lambda *a: ss2d_scan_norm(*a[:6], order, *a[6:], *([] if gate else [None])),
        [*arguments, *(t for t in norm if t is not None)])


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_opcheck(backend):
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    arguments = ss2d_arguments(channels=8)
    tensors = [t.detach().to(device).requires_grad_() for t in (*arguments, *norm_arguments(arguments[0]))]
    torch.library.opcheck(
        torch.ops.vmamba.ss2d_scan_norm_saving,
        (*tensors[:6], "cross", 3, 5, None, *tensors[6:], 1e-5, backend, True))


def test_wrong_arguments_name_themselves():
    arguments = ss2d_arguments()
    weight, bias, gate = norm_arguments(arguments[0])
    order = scan_order("cross", (3, 5))
    with pytest.raises(ValueError, match=r"norm_weight has shape \[3\], but needs \[D\] = \[4\]"):
        ss2d_scan_norm(*arguments, order, weight[:3], bias, gate)
    with pytest.raises(ValueError, match=r"gate has shape \[2, 15, 2\], but needs \[B, L, D\] = \[2, 15, 4\]"):
        ss2d_scan_norm(*arguments, order, weight, bias, gate[..., :2])
    for backend in ("auto", "reference"):
        with pytest.raises(ValueError, match="order is for 16 tokens"):
            ss2d_scan_norm(*arguments, scan_order("cross", (4, 4)), weight, bias, gate, backend=backend)
