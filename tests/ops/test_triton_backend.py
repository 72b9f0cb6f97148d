"""The Triton path behind the operators' own interface: on a GPU, or in Triton's interpreter where there is none.

The kernels themselves are tested in tests/kernels; these tests hold the wiring.
"""
import pytest
import torch

from tests.support.scans import gradients, selective_scan_arguments, ss2d_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import selective_scan, ss2d_scan, ssd_scan
from vmamba.scans import ScanOrder, scan_order

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(value):
    return value.detach().to(DEVICE).requires_grad_() if torch.is_tensor(value) else value


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize(("states", "groups"), [(1, 1), (2, 2)])
def test_selective_scan(states, groups, gate):
    arguments = selective_scan_arguments(length=20, states=states, groups=groups, gate=gate)
    results = []
    for backend, given in (("torch", arguments), ("triton", {k: on_device(v) for k, v in arguments.items()})):
        outputs = selective_scan(**given, return_last_state=True, backend=backend)
        results.append((*outputs, *gradients(outputs, given.values())))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("merge", ["sum", None])
@pytest.mark.parametrize(("name", "states"), [("cross", 1), ("cross", 3), ("bidi", 1), ("uni", 1), ("table", 1)])
def test_ss2d_scan(name, states, merge):
    arguments = ss2d_arguments(states=states)
    if name == "table":
        index = torch.stack([torch.randperm(15) for _ in range(4)]).int()
        order = ScanOrder("random", (3, 5), torch.cat([index, torch.full_like(index[:, :2], -1)], dim=1), 15)
    else:
        order = scan_order(name, (3, 5), 4)
    results = []
    for backend, given in (("torch", arguments), ("triton", tuple(map(on_device, arguments)))):
        y = ss2d_scan(*given, order, merge=merge, backend=backend)
        results.append((y, *gradients(y, given)))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("merge", ["sum", None])
@pytest.mark.parametrize("states", [1, 3])
def test_ss2d_scan_with_activations_of_its_own_for_each_direction(states, merge):
    arguments = ss2d_arguments(directions=2, states=states, own=True)
    order = scan_order("bidi", (3, 5))
    results = []
    for backend, given in (("torch", arguments), ("triton", tuple(map(on_device, arguments)))):
        y = ss2d_scan(*given, order, merge=merge, backend=backend)
        results.append((y, *gradients(y, given)))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("initial", [True, False])
def test_ssd_scan(causal, initial):
    normal = torch.randn
    arguments = {
        "x": normal(2, 20, 4, 3), "dt": normal(2, 20, 4), "A": -torch.rand(4) - 0.1, "B": normal(2, 20, 2, 5),
        "C": normal(2, 20, 2, 5), "D": normal(4), "dt_bias": normal(4), "dt_softplus": True,
        "initial_state": normal(2, 4, 3, 5) if initial else None, "causal": causal}
    results = []
    for backend in ("torch", "triton"):
        given = {k: on_device(v) for k, v in arguments.items()}
        outputs = ssd_scan(**given, return_last_state=True, backend=backend)
        results.append((*outputs, *gradients(outputs, given.values())))
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


def test_ssd_scan_of_large_heads_is_for_plain_torch_unless_triton_is_named():
    x, dt, B = torch.randn(1, 3, 1, 256, device=DEVICE), torch.rand(1, 3, 1, device=DEVICE), torch.randn(
        1, 3, 1, 128, device=DEVICE)
    A = -torch.ones(1, device=DEVICE)
    assert_close(ssd_scan(x, dt, A, B, B), ssd_scan(x, dt, A, B, B, backend="reference"))
    with pytest.raises(ValueError, match="P = 256 channels and N = 128 states"):
        ssd_scan(x, dt, A, B, B, backend="triton")


def test_opcheck():
    arguments = tuple(map(on_device, ss2d_arguments()))
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*arguments, "cross", 3, 5, None, True, "triton"))
    arguments = map(on_device, selective_scan_arguments(length=20).values())
    torch.library.opcheck(torch.ops.vmamba.selective_scan, (*arguments, "triton"))


def test_float64_is_refused_by_name():
    arguments = tuple(map(on_device, ss2d_arguments(dtype=torch.float64)))
    with pytest.raises(ValueError, match="it takes no float64; the backend 'torch' does"):
        ss2d_scan(*arguments, scan_order("cross", (3, 5)), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_auto_is_triton_on_a_gpu(dtype):
    arguments = tuple(map(on_device, ss2d_arguments(dtype=dtype)))
    order = scan_order("cross", (3, 5))
    assert torch.equal(ss2d_scan(*arguments, order), ss2d_scan(*arguments, order, backend="triton"))
    plain = ss2d_scan(*arguments, order, backend="torch")
    assert_close(ss2d_scan(*arguments, order), plain)


@pytest.mark.gpu
def test_whole_model_on_a_gpu():
    import timm

    import vmamba  # noqa: F401
    model = timm.create_model("test_vmamba").eval()
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        expected = model(x)
        actual = model.cuda()(x.cuda())
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=5e-4)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert torch.isfinite(model(x.cuda())).all()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x.cuda()).cpu(), expected, rtol=1e-3, atol=5e-4)
    compiled(x.cuda()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
