"""ssd_scan against its reference, step by step, and against the selective scan with the same rates."""
import pytest
import torch

from tests.support.tolerances import assert_close
from vmamba.ops import selective_scan, ssd_scan
from vmamba.ops._torch_ssd import CHUNK


def arguments(
        batch=2, length=13, heads=4, channels=3, groups=2, states=5, dtype=torch.float32, skip="channel", initial=True,
        requires_grad=True, causal=True):
    g = torch.Generator().manual_seed(length)
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*shape, to=dtype):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(to)

    out = {
        "x": normal(batch, length, heads, channels), "dt": normal(batch, length, heads),
        "A": -(torch.rand(heads, generator=g, dtype=torch.float64) * 2 + 0.1).to(wide),
        "B": normal(batch, length, groups, states), "C": normal(batch, length, groups, states),
        "D": {"channel": normal(heads, channels, to=wide), "head": normal(heads, to=wide), None: None}[skip],
        "dt_bias": normal(heads, to=wide) - 1, "dt_softplus": True,
        "initial_state": normal(batch, heads, channels, states, to=wide) if initial else None,
        "causal": causal}
    return {k: v.requires_grad_(requires_grad) if torch.is_tensor(v) else v for k, v in out.items()}


def run(kwargs, backend):
    return ssd_scan(**kwargs, return_last_state=True, backend=backend)


@pytest.mark.parametrize("length", [1, 2, 13, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
@pytest.mark.parametrize(("groups", "skip", "initial"), [(1, "head", False), (2, "channel", True), (4, None, True)])
@pytest.mark.parametrize("causal", [True, False])
def test_forward_and_gradients(length, groups, skip, initial, causal):
    kwargs = arguments(length=length, groups=groups, skip=skip, initial=initial, causal=causal)
    wanted = [v for v in kwargs.values() if torch.is_tensor(v)]
    results = []
    for backend in ("reference", "torch"):
        y, last = run(kwargs, backend)
        seed = torch.linspace(-1, 1, y.numel()).view_as(y), torch.linspace(1, -1, last.numel()).view_as(last)
        results.append([y, last, *torch.autograd.grad((y, last), wanted, seed)])
    for expected, actual in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("causal", [True, False])
def test_parts_of_the_gradients(causal):
    """Where only one output is used, and without what is optional."""
    kwargs = arguments(length=CHUNK + 7, skip=None, initial=False, causal=causal) | {
        "dt_bias": None, "dt_softplus": False}
    wanted = [v for v in kwargs.values() if torch.is_tensor(v)]
    for which in (0, 1):
        expected, actual = (
            torch.autograd.grad(run(kwargs, backend)[which].square().sum(), wanted, materialize_grads=True)
            for backend in ("reference", "torch"))
        for e, a in zip(expected, actual, strict=True):
            assert_close(a, e)


def test_without_an_order_the_order_does_not_matter():
    kwargs = arguments(length=20, causal=False, requires_grad=False)
    y, last = run(kwargs, "torch")
    turned = {k: v.flip(1) if k in ("x", "dt", "B", "C") else v for k, v in kwargs.items()}
    z, same = run(turned, "torch")
    assert_close(z.flip(1), y)
    assert_close(same, last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs(dtype):
    kwargs = arguments(length=100, dtype=dtype, requires_grad=False)
    y, last = run(kwargs, "torch")
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    wide = {k: v.float() if torch.is_tensor(v) else v for k, v in kwargs.items()}
    expected, expected_last = run(wide, "reference")
    assert_close(y, expected, dtype)
    assert_close(last, expected_last)


def test_is_the_selective_scan_with_one_rate_and_step_size_per_head():
    kwargs = arguments(length=70, dtype=torch.float64, requires_grad=False)
    x, channels, states = kwargs["x"], 3, 5

    def wide(t):  # a head's value for each of its channels
        return t.repeat_interleave(channels, dim=-1)

    expected, last = selective_scan(
        x.flatten(2).mT, wide(kwargs["dt"]).mT, wide(kwargs["A"]).unsqueeze(1).expand(-1, states).contiguous(),
        kwargs["B"].permute(0, 2, 3, 1), kwargs["C"].permute(0, 2, 3, 1), kwargs["D"].flatten(), None,
        wide(kwargs["dt_bias"]), True, kwargs["initial_state"].flatten(1, 2), True)
    y, last_state = run(kwargs, "torch")
    assert_close(y.flatten(2).mT, expected)
    assert_close(last_state.flatten(1, 2), last)


def test_strong_decay_over_many_steps_stays_finite():
    """Sums of logarithms, not quotients of products, which would divide zero by zero."""
    kwargs = arguments(length=2 * CHUNK, requires_grad=False)
    kwargs["A"] = kwargs["A"] * 1000
    y, last = run(kwargs, "torch")
    expected, expected_last = run(kwargs, "reference")
    assert_close(y, expected)
    assert_close(last, expected_last)


@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(causal):
    kwargs = arguments(batch=1, length=5, heads=2, channels=2, groups=1, states=2, dtype=torch.float64, causal=causal)
    tensors = {k: v for k, v in kwargs.items() if torch.is_tensor(v)}
    assert torch.autograd.gradcheck(
        lambda *a: run({**kwargs, **dict(zip(tensors, a, strict=True))}, "torch"), tuple(tensors.values()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("initial", [True, False])
def test_opcheck(causal, initial):
    kwargs = arguments(length=CHUNK + 3, initial=initial, causal=causal)
    torch.library.opcheck(torch.ops.vmamba.ssd_scan, tuple(kwargs.values()))


@pytest.mark.parametrize(("change", "message"), [
    ({"dt": torch.zeros(2, 13, 3)}, r"dt has shape \[2, 13, 3\], but needs \[B, L, H\] = \[2, 13, 4\]"),
    ({"B": torch.zeros(2, 13, 3, 5)}, "B has 3 groups, but needs a number G that divides H = 4"),
    ({"D": torch.zeros(4, 2)}, r"D has shape \[4, 2\], but needs \[H\] or \[H, P\]"),
    ({"A": torch.zeros(4, dtype=torch.int64)}, "A has dtype torch.int64"),
    ({"initial_state": torch.zeros(2, 4, 3, 4)}, "initial_state has shape"),
    ({"x": torch.zeros(2, 0, 4, 3), "dt": torch.zeros(2, 0, 4), "B": torch.zeros(2, 0, 2, 5),
      "C": torch.zeros(2, 0, 2, 5)}, "L = 0"),
])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_refusals(change, message, backend):
    with pytest.raises(ValueError, match=message):
        ssd_scan(**{**arguments(), **change}, backend=backend)


def test_backends_that_cannot_run_are_refused():
    with pytest.raises(ValueError, match="backend is 'cuda', but needs one of 'auto', 'reference', 'torch', 'triton'"):
        ssd_scan(**arguments(), backend="cuda")
    with pytest.raises(ValueError, match="it takes no float64; the backend 'torch' does"):
        ssd_scan(**arguments(dtype=torch.float64), backend="triton")
