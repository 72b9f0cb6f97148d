"""Scans as ONNX: each of their forms against the step-by-step reference, at several batches and sizes of one file."""
import numpy as np
import onnxruntime
import pytest
import torch

from vmamba.export import onnx_scan
from vmamba.export.onnx_scan import CHUNK, _softplus, to_onnx
from vmamba.export.operators import InTorch
from vmamba.export.program import trace
from vmamba.layers import AttentiveGlobal, ChannelScan, ContinuousMixer, from_windows, to_windows
from vmamba.ops import selective_scan
from vmamba.ops import ss2d_scan as operator
from vmamba.scans import default_directions, scan_order

CHANNELS, RANK = 6, 2
SHAPES = [(1, 2, 3), (3, 5, 7), (2, 9, 8), (1, 11, CHUNK)]


class Scan(torch.nn.Module):
    """Any form of the scan on a map [B, H, W, D], with parameters and projections of its own."""

    def __init__(self, order, states, merge=True, own=False, readout=True, skip=True, bias=True):
        super().__init__()
        K = default_directions(order)
        self.order, self.merge, self.own = order, merge, own
        self.columns = RANK + states * (1 + readout)
        self.project = torch.nn.Parameter(torch.randn(K * self.columns, CHANNELS))
        self.weight = torch.nn.Parameter(torch.randn(K, CHANNELS, RANK))
        self.bias = torch.nn.Parameter(torch.randn(K, CHANNELS)) if bias else None
        self.A_log = torch.nn.Parameter(torch.randn(K, CHANNELS, states))
        self.D = torch.nn.Parameter(torch.randn(K, CHANNELS)) if skip else None

    def arguments(self, maps):
        x = maps.flatten(1, 2)
        K = self.weight.shape[0]
        proj = (x @ self.project.t()).unflatten(2, (K, self.columns))
        if self.own:
            x = torch.stack([x * (k + 1) for k in range(K)], dim=2)
        return x, proj, self.weight, self.bias, self.A_log, self.D

    def forward(self, maps):
        H, W = maps.shape[1:3]
        return torch.ops.vmamba.ss2d_scan(*self.arguments(maps), self.order, H, W, None, self.merge)[0]

    def reference(self, maps):
        return operator(
            *self.arguments(maps), scan_order(self.order, maps.shape[1:3]), merge="sum" if self.merge else None,
            backend="reference")


class Positions(torch.nn.Module):
    """A scan along the last axis of a map [B, H, W, D] both ways, each a group whose channels are the positions."""

    def __init__(self, states, bias_and_skip):
        super().__init__()
        self.project = torch.nn.Parameter(torch.randn(4 * states, CHANNELS, CHANNELS))
        self.A = torch.nn.Parameter(-torch.rand(2, 1, states))
        self.bias = torch.nn.Parameter(torch.randn(2)) if bias_and_skip else None
        self.states = states

    def arguments(self, maps):
        batch, H, W = maps.shape[:3]
        positions = H * W
        u = torch.cat([maps, maps.flip(3)], dim=1).reshape(batch, 2 * positions, CHANNELS)
        rows = torch.einsum("bhwd,ned->bne", maps, self.project) / positions
        B, C = rows.reshape(batch, 2, 2, self.states, CHANNELS).unbind(1)
        each = None if self.bias is None else self.bias.unsqueeze(1).expand(-1, positions).flatten()
        return (u, u.roll(1, 2), self.A.expand(-1, positions, -1).flatten(0, 1), B, C, each, None, each, True)

    def forward(self, maps):
        return torch.ops.vmamba.selective_scan(*self.arguments(maps), None)[0]

    def reference(self, maps):
        return selective_scan(*self.arguments(maps), backend="reference")


def through_onnx(module, channels=CHANNELS):
    """A function of maps that onnxruntime runs, whose batch, height and width are free."""
    free = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(
            InTorch(module, walks=True), (torch.zeros(2, 8, 6, channels),), dynamic_shapes=(free,), strict=False)
    return session_of(program)


def session_of(program):
    session = onnxruntime.InferenceSession(
        to_onnx(program).model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda maps: torch.from_numpy(session.run(["logits"], {"images": maps.numpy()})[0])


def assert_equals_the_reference(scan):
    run = through_onnx(scan)
    for shape in SHAPES:
        maps = torch.randn(*shape, CHANNELS)
        with torch.no_grad():
            expected = scan.reference(maps)
        torch.testing.assert_close(run(maps), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [
    {"order": "cross", "states": 1},
    {"order": "cross", "states": 4, "merge": False},
    {"order": "uni", "states": 1, "readout": False, "skip": False},
    {"order": "bidi", "states": 3, "own": True, "merge": False},
    {"order": "bidi", "states": 1, "own": True, "bias": False},
    {"order": "atrous", "states": 2},
    {"order": "h+w3_flip", "states": 1, "merge": False},
    {"order": "atrous", "states": 1, "skip": False},
], ids=lambda form: "-".join(f"{key}={value}" for key, value in form.items()))
def test_equals_the_reference_at_every_size(form):
    assert_equals_the_reference(Scan(**form))


@pytest.mark.parametrize(("states", "bias_and_skip"), [(1, True), (3, False)])
def test_selective_scan_equals_the_reference_at_every_size(states, bias_and_skip):
    assert_equals_the_reference(Positions(states, bias_and_skip))


@pytest.mark.parametrize(("gate", "softplus", "state"), [("z", True, None), (None, False, None), (None, True, "h")])
def test_what_no_model_asks_of_selective_scan_is_refused(gate, softplus, state):
    with pytest.raises(NotImplementedError, match="no model of the suite calls selective_scan without"):
        onnx_scan.selective_scan(*"udABCD", gate, "bias", softplus, state)


@pytest.mark.parametrize("layer", [ContinuousMixer(CHANNELS, 3), ChannelScan(CHANNELS, 5, 2)], ids=type)
def test_a_layer_with_a_scan_of_its_own_kind(layer):
    run = through_onnx(layer)
    for shape in SHAPES[1:]:
        maps = torch.randn(*shape, CHANNELS)
        with torch.no_grad():
            expected = layer(maps)
        torch.testing.assert_close(run(maps), expected, rtol=1e-5, atol=1e-5)


class Attention(AttentiveGlobal):
    """The part that attends to all positions, with a bias; heads become channels again."""

    def forward(self, maps):
        heads = maps.unflatten(-1, (self.num_heads, -1))
        return self.refine(maps, heads, heads, maps, maps)


def test_attention_with_a_bias():
    attention = Attention(8, 2, 3)
    torch.nn.init.normal_(attention.global_bias)
    run = through_onnx(attention, channels=8)
    for shape in SHAPES:
        maps = torch.randn(*shape, 8)
        with torch.no_grad():
            expected = attention(maps)
        torch.testing.assert_close(run(maps), expected, rtol=1e-5, atol=1e-5)


class Windows(torch.nn.Module):
    """Turns each window of a map [B, C, H, W] round."""

    def __init__(self, size):
        super().__init__()
        self.size, self.weight = size, torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        maps = images.permute(0, 2, 3, 1)
        tokens = to_windows(maps, self.size).flip(1) * self.weight
        return from_windows(tokens, self.size, *maps.shape[:3])


def test_images_of_one_window_are_no_reason_for_one_window():
    windows = Windows(128)
    run = session_of(trace(InTorch(windows, walks=True), (1, 128, 128), fixed_size=False))
    for size in ((128, 128), (128, 200), (260, 128), (300, 390)):
        images = torch.randn(2, 1, *size)
        torch.testing.assert_close(run(images), windows(images))


def test_strong_and_weak_decay_over_many_chunks():
    """Neither overflow nor loss of what earlier chunks left: rates from nothing to all at once, steps up to 10.

    Long memories add up the rounding of the decays, in any order of the steps; so the measure is how far from float64
    the step-by-step reference is in float32.
    """
    scan = Scan("cross", 1)
    with torch.no_grad():
        scan.A_log.copy_(torch.linspace(-12, 6, scan.A_log.numel()).view_as(scan.A_log))
        scan.bias.copy_(torch.linspace(-10, 10, scan.bias.numel()).view_as(scan.bias))
        maps = torch.randn(2, 23, 31, CHANNELS)
        found, step_by_step = through_onnx(scan)(maps), scan.reference(maps)
        exact = scan.double().reference(maps.double())
    assert found.isfinite().all()
    assert (found - exact).abs().max() <= 3 * (step_by_step - exact).abs().max()


def test_softplus_has_the_digits_of_float32_from_tiny_to_huge():
    x = np.concatenate([np.linspace(-80, 200, 2801, dtype=np.float32), np.float32([-1e4, -16.7, -16.6, 1e30])])
    exact = np.logaddexp(0, x.astype(np.float64))
    np.testing.assert_allclose(_softplus(x), exact, rtol=1e-6, atol=1e-37)
