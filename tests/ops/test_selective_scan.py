import json

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS
from tests.support.scans import gradients, selective_scan_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import selective_scan

META = json.loads((GOLDENS / "vmamba" / "op_selective_scan.json").read_text())
TENSORS = load_file(GOLDENS / "vmamba" / "op_selective_scan.safetensors")


def run(arguments, backend):
    y, last_state = selective_scan(**arguments, return_last_state=True, backend=backend)
    return (y, last_state, *gradients((y, last_state), arguments.values()))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("case", META["cases"], ids=lambda case: case["name"])
def test_matches_official(case, backend):
    name = case["name"]
    given = {k: TENSORS[f"{name}.in.{k}"] for k in ("u", "delta", "A", "B", "C", "D", "bias", "dout")
             if f"{name}.in.{k}" in TENSORS}
    dout = given.pop("dout")
    for precision, dtype in (("f32", None), ("f64", torch.float64)):
        if f"{name}.{precision}.out" not in TENSORS:
            continue
        inputs = {k: (v.to(dtype) if dtype else v.clone()).requires_grad_() for k, v in given.items()}
        out = selective_scan(
            *(inputs[k] for k in ("u", "delta", "A", "B", "C")), D=inputs.get("D"), delta_bias=inputs.get("bias"),
            delta_softplus=case["delta_softplus"], backend=backend)
        # official float16 and bfloat16 cases return float32; ours round the same value to the input type
        assert_close(out, TENSORS[f"{name}.{precision}.out"])
        out.backward(dout.to(out.dtype))
        for k, tensor in inputs.items():
            key = f"{name}.{precision}.d{k}"
            if key in TENSORS:
                assert_close(tensor.grad, TENSORS[key], dtype=inputs["u"].dtype)


@pytest.mark.parametrize("states", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 49, 131, 300])
def test_torch_path_matches_reference(states, length):
    arguments = selective_scan_arguments(length=length, states=states, groups=2, dtype=torch.float64)
    for actual, expected in zip(run(arguments, "torch"), run(arguments, "reference"), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 16])
def test_low_precision_matches_float64(states, dtype):
    arguments = selective_scan_arguments(length=100, states=states, dtype=dtype)
    wide = {k: v.detach().double().requires_grad_() if torch.is_tensor(v) else v for k, v in arguments.items()}
    for actual, expected in zip(run(arguments, "torch"), run(wide, "reference"), strict=True):
        assert_close(actual, expected, dtype=dtype)


@pytest.mark.parametrize("shift", [-1e4, -30.0, 30.0, 1e4])
@pytest.mark.parametrize("states", [1, 4])
def test_extreme_step_sizes(states, shift):
    arguments = selective_scan_arguments(length=70, states=states, dtype=torch.float64)
    arguments["delta_bias"] = (arguments["delta_bias"].detach() + shift).requires_grad_()
    for actual, expected in zip(run(arguments, "torch"), run(arguments, "reference"), strict=True):
        assert torch.isfinite(actual).all()
        assert_close(actual, expected)


@pytest.mark.parametrize("rate", [-1e-6, -50.0])
def test_slow_and_fast_decay_in_float32(rate):
    arguments = selective_scan_arguments(length=3000, states=1)
    arguments["A"] = torch.full_like(arguments["A"], rate).requires_grad_()
    wide = {k: v.detach().double().requires_grad_() if torch.is_tensor(v) else v for k, v in arguments.items()}
    for actual, expected in zip(run(arguments, "torch"), run(wide, "reference"), strict=True):
        assert_close(actual, expected, dtype=torch.float32)


@pytest.mark.parametrize("states", [1, 3])
def test_clips_give_the_same_as_the_whole(states):
    whole = selective_scan_arguments(length=40, states=states, dtype=torch.float64, requires_grad=False)
    expected, expected_last = selective_scan(**whole, return_last_state=True)
    state, parts = whole["initial_state"], []
    for clip in (slice(0, 7), slice(7, 8), slice(8, 40)):
        piece = {k: v[..., clip] if k in ("u", "delta", "B", "C", "z") else v for k, v in whole.items()}
        y, state = selective_scan(**{**piece, "initial_state": state}, return_last_state=True)
        parts.append(y)
    assert_close(torch.cat(parts, -1), expected)
    assert_close(state, expected_last)


@pytest.mark.parametrize("states", [1, 3])
def test_gradcheck(states):
    arguments = selective_scan_arguments(length=20, channels=2, states=states, dtype=torch.float64)
    names = [k for k, v in arguments.items() if torch.is_tensor(v)]

    def scan(*tensors):
        return selective_scan(
            **dict(zip(names, tensors, strict=True)), delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, [arguments[n] for n in names])


@pytest.mark.parametrize(("states", "gate", "initial"), [(1, True, True), (1, False, False), (4, True, False)])
def test_opcheck(states, gate, initial):
    arguments = selective_scan_arguments(length=20, states=states, gate=gate, initial=initial)
    torch.library.opcheck(torch.ops.vmamba.selective_scan, tuple(arguments.values()))


def test_optional_arguments_and_ungrouped_matrices():
    arguments = selective_scan_arguments(length=21, states=3, dtype=torch.float64, gate=False, initial=False)
    arguments |= {"D": None, "delta_bias": None, "delta_softplus": False}
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    expected = run(arguments, "reference")
    arguments |= {k: arguments[k].detach()[:, 0].requires_grad_() for k in ("B", "C")}
    actual = run(arguments, "torch")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e.reshape(a.shape))


def test_strided_inputs():
    arguments = selective_scan_arguments(length=33, states=1)
    expected = selective_scan(**arguments)
    for k in ("u", "delta", "z"):
        arguments[k] = arguments[k].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    actual = selective_scan(**arguments)
    assert_close(actual, expected)
    actual.sum().backward()
    for laid_out in (actual, arguments["u"].grad, arguments["delta"].grad, arguments["z"].grad):
        assert laid_out.mT.is_contiguous()
    torch.library.opcheck(torch.ops.vmamba.selective_scan, tuple(arguments.values()))


def test_two_runs_give_equal_bits():
    arguments = selective_scan_arguments(length=200, states=4)
    for first, second in zip(run(arguments, "torch"), run(arguments, "torch"), strict=True):
        assert torch.equal(first, second)


def test_second_derivative_through_the_reference():
    arguments = selective_scan_arguments(length=5, channels=2, dtype=torch.float64)
    u = arguments["u"]
    (grad,) = torch.autograd.grad(
        selective_scan(**arguments, backend="reference").square().sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), u)
    assert second.shape == u.shape
    assert second.abs().max() > 0


@pytest.mark.parametrize(("change", "message"), [
    ({"u": torch.zeros(2, 6)}, r"u has shape \[2, 6\], but needs \[B, D, L\]"),
    ({"delta": torch.zeros(2, 6, 12)}, r"delta has shape \[2, 6, 12\], but needs \[B, D, L\] = \[2, 6, 13\]"),
    ({"A": torch.zeros(5, 1)}, r"A has shape \[5, 1\], but needs \[D, N\] = \[6, \*\]"),
    ({"B": torch.zeros(2, 4, 1, 13)}, "B has 4 groups, but needs a number G that divides D = 6"),
    ({"D": torch.zeros(6, dtype=torch.int64)}, r"D has dtype torch\.int64"),
    ({"initial_state": torch.zeros(2, 6, 2)}, r"initial_state has shape \[2, 6, 2\]"),
    ({"backend": "cuda"}, "backend is 'cuda', but needs one of 'auto', 'reference', 'torch', 'triton'"),
    ({"backend": "triton"}, "backend 'triton' was named, but the tensors are on cpu and it needs CUDA"),
])
def test_wrong_arguments_name_themselves(change, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # set where kernels are tested without a GPU
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**selective_scan_arguments(), **change})


def test_meta_and_compile():
    arguments = selective_scan_arguments(length=20)
    on_meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in arguments.items()}
    assert selective_scan(**on_meta).shape == arguments["u"].shape
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(**arguments), selective_scan(**arguments)
    assert_close(actual, expected)
    for a, e in zip(gradients(actual, arguments.values()), gradients(expected, arguments.values()), strict=True):
        assert_close(a, e)
