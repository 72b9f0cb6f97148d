"""The SS2D module against the official one in every forward type that works upstream."""
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS, fill
from vmamba.layers import SS2D, SS2DVariant
from vmamba.ops import ss2d_mixer

META = json.loads((GOLDENS / "vmamba" / "module_ss2d.json").read_text())
TENSORS = load_file(GOLDENS / "vmamba" / "module_ss2d.safetensors")
CASES = {case["name"]: case for case in META["cases"] if "official_error" not in case}
OUT_NORMS = {"onnone": "none", "onsigmoid": "sigmoid", "onsoftmax": "softmax", "ondwconv3": "dwconv3",
             "oncnorm": "cnorm"}
SCANS = {"v051d": ("uni", 4), "v052d": ("bidi", 4), "v052dc": ("cascade", None)}
RENAMES = {
    "x_proj_weight": "x_proj.weight", "dt_projs_weight": "dt_weight", "dt_projs_bias": "dt_bias", "A_logs": "A_log",
    "Ds": "D", "conv2d.weight": "conv.weight", "conv2d.bias": "conv.bias",
    "out_norm.1.weight": "out_norm.weight", "out_norm.2.weight": "out_norm.1.weight",
}


def build(case):
    core, *suffixes = case["forward_type"].split("_")
    scan, directions = SCANS.get(core, ("cross", None))
    gate = None if "noz" in suffixes else "identity" if "nozact" in suffixes else "silu"
    sizes = {k: case[k] for k in ("d_state", "ssm_ratio", "d_conv", "conv_bias")}
    variant = {
        "scan": scan, "out_norm": next((OUT_NORMS[s] for s in suffixes if s in OUT_NORMS), "layernorm"),
        "out_act": "gelu" if "oact" in suffixes else None}
    if gate == "identity" or variant != {"scan": "cross", "out_norm": "layernorm", "out_act": None}:
        module = SS2DVariant(case["d_model"], directions=directions, gate_act=gate, **variant, **sizes)
    else:
        module = SS2D(case["d_model"], gate=gate is not None, **sizes)
    own = module.state_dict()
    names = {}
    for key, _, _ in case["entries"]:
        official = key.removeprefix("ss2d.")
        names[official] = RENAMES.get(official, official)
    state = {k.removeprefix("ss2d."): v for k, v in fill.fill_state_dict(case["entries"])}
    module.load_state_dict({names[k]: v.view(own[names[k]].shape) for k, v in state.items()})
    return module, names


def run(case, dtype):
    module, names = build(case)
    module = module.to(dtype)
    x = fill.seeded_randn(f"ss2d/{case['name']}", (2, case["d_model"], case["H"], case["W"])).to(dtype).requires_grad_()
    out = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    dout = fill.seeded_randn(f"ss2d/{case['name']}/dout", tuple(out.shape)).to(dtype)
    (out * dout).sum().backward()
    params = dict(module.named_parameters())
    return out.detach(), x.grad, {official: params[ours].grad for official, ours in names.items()}


@pytest.mark.parametrize("name", CASES)
def test_matches_official(name):
    out, dx, _ = run(CASES[name], torch.float32)
    torch.testing.assert_close(out, TENSORS[f"{name}.f32.out"], atol=2e-5, rtol=0)
    torch.testing.assert_close(dx, TENSORS[f"{name}.f32.dx"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_official(name):
    out, dx, grads = run(CASES[name], torch.float64)
    # the official code keeps a few float32 steps in its float64 run, so float32 rounding remains in places
    tolerance = {"atol": 1e-7, "rtol": 1e-5}
    torch.testing.assert_close(out, TENSORS[f"{name}.f64.out"], **tolerance)
    torch.testing.assert_close(dx, TENSORS[f"{name}.f64.dx"], **tolerance)
    for official, grad in grads.items():
        expected = TENSORS[f"{name}.f64.grad.ss2d.{official}"]
        torch.testing.assert_close(grad.reshape(expected.shape), expected, **tolerance)


def test_unknown_scan_suggests_names():
    with pytest.raises(ValueError, match="did you mean 'cross'"):
        SS2D(16, scan="cros")


def test_impossible_directions_are_refused():
    with pytest.raises(ValueError, match="even number of directions"):
        SS2D(16, scan="bidi", directions=3)


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.fixture
def one_operator(monkeypatch):
    """As if tensors were on a GPU; gives the number of calls of the operator for the whole mixer."""
    from vmamba.layers import ss2d
    calls = []
    monkeypatch.setattr(ss2d, "runs_alone_on_gpu", lambda x: True)
    monkeypatch.setattr(ss2d, "ss2d_mixer", lambda *given, **how: calls.append(1) or ss2d_mixer(*given, **how))
    return calls


@pytest.mark.parametrize("options", [
    {}, {"conv_bias": True, "d_state": 2, "ssm_ratio": 2.0}, {"scan": "bidi", "directions": 2}, {"scan": "hilbert4"}])
def test_on_a_gpu_one_operator_does_it_all(one_operator, options):
    torch.manual_seed(0)
    module = SS2D(6, **options).double()
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, *module.parameters())
    cotangent = torch.randn_like(x)
    got = module(x)
    assert len(one_operator) == 1
    gradients = torch.autograd.grad(got, inputs, cotangent)
    module.in_proj.register_forward_hook(lambda *_: None)   # has to be called
    expected = module(x)
    assert len(one_operator) == 1
    same(got, expected)
    for a, b in zip(gradients, torch.autograd.grad(expected, inputs, cotangent), strict=True):
        same(a, b)


class Scaled(torch.nn.Linear):
    """Like an adapter: more than its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "out_proj"])
def test_adapters_are_called(one_operator, name):
    module, x = SS2D(6).double(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    plain = module(x)
    adapted = Scaled(*reversed(getattr(module, name).weight.shape), bias=False).double()
    adapted.load_state_dict(getattr(module, name).state_dict())
    setattr(module, name, adapted)
    assert not torch.allclose(module(x), plain)
    assert len(one_operator) == 1


@pytest.mark.parametrize("options", [{"gate": True}, {"d_conv": 5}, {"d_conv": 1}])
def test_other_mixers_run_in_parts(one_operator, options):
    assert SS2D(6, **options)(torch.randn(1, 3, 4, 6)).shape == (1, 3, 4, 6)
    assert not one_operator
