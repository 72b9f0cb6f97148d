"""The SS2D module against the official one in every forward type that works upstream."""
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS, fill
from vmamba.layers import SS2D, SS2DVariant

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
