"""The scans of the suite in ONNX: the recurrence is the operator ``Scan``; and what torch.onnx leaves out.

A call of ``Scan`` costs a runtime a few microseconds a step, whatever a step does, so steps should be few and large.
With several states per channel a step is large: all steps go one after another, and the states, ``N`` times as many
values as there are inputs, never exist for more than one step. With one state per channel the walk is cut into chunks
that go side by side, from state zero; a second, short ``Scan`` carries the states from chunk to chunk. Only products
of decays appear, as in :mod:`vmamba.ops._recurrence`.

Shape letters as in ``vmamba.ops``; T steps of a walk, S steps of a chunk, M sequences side by side.
"""
import logging
import math
import operator
from collections.abc import Callable

import onnx_ir
import torch
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from vmamba.scans import scan_routes

__all__ = ["CHUNK", "to_onnx"]

OPSET = 18
CHUNK = 32
INT64, FLOAT32 = 7, 1  # numbers of ONNX's types


@script(default_opset=op)
def _softplus(x: FLOAT[...]) -> FLOAT[...]:
    """``log(1 + exp(x))`` of ordinary operators, three times as fast as onnxruntime's own.

    With ``u`` what ``1 + e`` is rounded to, ``log(u) e / (u - 1)`` has the digits that ``log(u)`` has lost. Where ``u``
    would be 1, any other number next to it does, so ``u`` is kept from 1 itself.
    """
    one = op.Constant(value_float=1.0)
    e = op.Exp(op.Min(x, op.Constant(value_float=80.0)))
    u = op.Max(op.Add(e, one), op.Constant(value_float=1.00000011920929))
    return op.Max(op.Mul(op.Log(u), op.Div(e, op.Sub(u, one))), x)


@script(default_opset=op)
def _states(
        h0: FLOAT, p0: FLOAT, u: FLOAT, factors: FLOAT, B: FLOAT, weight: FLOAT, bias: FLOAT, A: FLOAT,
) -> tuple[FLOAT, FLOAT, FLOAT, FLOAT]:
    """States [S, K, M, D] and products of the decays so far, and both after the last step."""
    @graph()
    def step(h_in, p_in, u_t, factors_t, B_t):
        delta = _softplus(op.Add(op.MatMul(factors_t, weight), bias))
        decay = op.Exp(op.Mul(delta, A))
        h = op.Add(op.Mul(decay, h_in), op.Mul(op.Mul(delta, u_t), B_t))
        p = op.Mul(decay, p_in)
        return h, p, op.Identity(h), op.Identity(p)

    h_end, p_end, h, p = op.Scan(h0, p0, u, factors, B, body=step, num_scan_inputs=3)
    return h_end, p_end, h, p


@script(default_opset=op)
def _carries(h0: FLOAT, ends: FLOAT, decays: FLOAT) -> FLOAT:
    """States before chunks, from those that each ends with when it begins from zero."""
    @graph()
    def step(h_in, end, decay):
        h = op.Add(op.Mul(decay, h_in), end)
        return h, op.Identity(h_in)

    _end, before = op.Scan(h0, ends, decays, body=step, num_scan_inputs=2)
    return before


@script(default_opset=op)
def _outputs(h0: FLOAT, delta: FLOAT, drive: FLOAT, B: FLOAT, C: FLOAT, A: FLOAT) -> FLOAT:
    """``C h`` after each step, [T, K, M, 1, D], of ``delta`` and ``delta u`` shaped like that."""
    @graph()
    def step(h_in, delta_t, drive_t, B_t, C_t):
        decay = op.Exp(op.Mul(delta_t, A))
        h = op.Add(op.Mul(decay, h_in), op.Mul(drive_t, B_t))
        return h, op.MatMul(C_t, h)

    _end, y = op.Scan(h0, delta, drive, B, C, body=step, num_scan_inputs=4)
    return y


def _ints(*values: int):
    return op.Constant(value_ints=list(values))


def _shape(*parts):
    """A shape of constants, -1 for what is left, and of values."""
    return op.Concat(*[_ints(part) if isinstance(part, int) else part for part in parts], axis=0)


def _full(value: float, *shape):
    return op.Expand(op.Constant(value_float=value), _shape(*shape))


def _columns(x, first: int, last: int):
    """``x[..., first:last]``."""
    return op.Slice(x, _ints(first), _ints(last), _ints(-1))


class _Call:
    """Arguments of one call, tokens first, and what the two ways of walking share."""

    def __init__(self, x, proj, dt_weight, dt_bias, A_log, index, absent: bool) -> None:
        self.directions, self.channels, self.rank = (int(size) for size in dt_weight.shape)
        self.states, self.columns = int(A_log.shape[2]), int(proj.shape[3])
        self.own, self.absent = len(x.shape) == 4, absent  # whether each direction has its own x, entries may be -1
        self.batch = op.Shape(x, start=0, end=1)
        self.x = op.Transpose(x, perm=[1, 2, 0, 3] if self.own else [1, 0, 2])  # [L, (K,) B, D]
        self.proj = op.Transpose(proj, perm=[1, 2, 0, 3])  # [L, K, B, P]
        self.length = op.Shape(self.x, start=0, end=1)
        self.walk = op.Cast(op.Transpose(index, perm=[1, 0]), to=INT64)  # [T, K]
        if absent:  # a row of zeros after the last token
            self.walk = op.Where(op.Less(self.walk, _ints(0)), self.length, self.walk)
        self.steps = op.Shape(self.walk, start=0, end=1)
        self.back = self._inverse()
        bias = dt_bias if dt_bias is not None else _full(0.0, self.directions, self.channels)
        self.parameters = (
            op.Transpose(dt_weight, perm=[0, 2, 1]), op.Unsqueeze(bias, _ints(1)),
            op.Neg(op.Exp(op.Transpose(A_log, perm=[0, 2, 1]))))  # [K, R, D], [K, 1, D], [K, N, D]

    def _inverse(self):
        """[L, K]: the step at which a token is visited, -1 where it never is."""
        step = op.Range(op.Constant(value_int=0), op.Squeeze(self.steps), op.Constant(value_int=1))
        never = op.Expand(_ints(-1), _shape(op.Add(self.length, _ints(1)), self.directions))
        steps = op.Expand(op.Unsqueeze(step, _ints(1)), op.Shape(self.walk))
        return op.Slice(op.ScatterElements(never, self.walk, steps, axis=0), _ints(0), self.length, _ints(0))

    def rows(self, t, rank: int, size: int):
        """``t`` [L, B, C] or [L, K, B, C] as rows [..., B, C], with those of zeros where there may be any."""
        if self.absent:
            t = op.Pad(t, _ints(*[0] * rank, 1, *[0] * (rank - 1)))
        return op.Reshape(t, _shape(-1, self.batch, size))

    def inputs(self, tokens, k):
        """Of tokens [...]: x [..., B, D] and the projection [..., B, P], with ``k`` their directions."""
        rows = op.Add(op.Mul(tokens, _ints(self.directions)), k)
        x, proj = self.rows(self.x, 4 if self.own else 3, self.channels), self.rows(self.proj, 4, self.columns)
        return op.Gather(x, rows if self.own else tokens, axis=0), op.Gather(proj, rows, axis=0)

    def several(self):
        """With several states per channel: ``[L, K, B, D]`` in natural order."""
        K, N, k = self.directions, self.states, _ints(*range(self.directions))
        u, proj = self.inputs(self.walk, k)  # [T, K, B, ...]
        B, C = (_columns(proj, first, first + N) for first in (self.rank, self.rank + N))
        weight, bias, A = self.parameters
        delta = _softplus(op.Add(op.MatMul(_columns(proj, 0, self.rank), weight), bias))
        y = _outputs(
            _full(0.0, K, self.batch, N, self.channels), op.Unsqueeze(delta, _ints(-2)),
            op.Unsqueeze(op.Mul(delta, u), _ints(-2)), op.Unsqueeze(B, _ints(-1)), op.Unsqueeze(C, _ints(-2)),
            op.Unsqueeze(A, _ints(1)))
        return self.natural(y, op.Add(op.Mul(self.back, _ints(K)), k))

    def single(self):
        """With one state per channel: ``[L, K, B, D]`` in natural order."""
        K, k = self.directions, _ints(*range(self.directions))
        chunks = op.Div(op.Add(self.steps, _ints(CHUNK - 1)), _ints(CHUNK))
        # steps beyond the last are those of token 0, and nobody looks at what comes of them
        missing = op.Sub(op.Mul(chunks, _ints(CHUNK)), self.steps)
        tokens = op.Reshape(op.Pad(self.walk, _shape(0, 0, missing, 0)), _shape(chunks, CHUNK, K))
        u, proj = self.inputs(op.Transpose(tokens, perm=[1, 2, 0]), op.Unsqueeze(k, _ints(1)))  # [S, K, chunks, B, ...]

        def side_by_side(t, size):
            return op.Reshape(t, _ints(CHUNK, K, -1, size))

        state = (K, op.Mul(chunks, self.batch), self.channels)
        h_end, p_end, h, p = _states(
            _full(0.0, *state), _full(1.0, *state), side_by_side(u, self.channels),
            side_by_side(_columns(proj, 0, self.rank), self.rank),
            side_by_side(_columns(proj, self.rank, self.rank + 1), 1), *self.parameters)
        ends, decays = (
            op.Transpose(op.Reshape(t, _shape(K, chunks, self.batch, self.channels)), perm=[1, 0, 2, 3])
            for t in (h_end, p_end))
        before = _carries(_full(0.0, K, self.batch, self.channels), ends, decays)
        h = op.Add(h, op.Mul(p, op.Reshape(op.Transpose(before, perm=[1, 0, 2, 3]), _shape(*state))))
        row = op.Add(op.Mul(op.Mod(self.back, _ints(CHUNK)), _ints(K)), k)
        y = self.natural(h, op.Add(op.Mul(row, chunks), op.Div(self.back, _ints(CHUNK))))
        if self.columns == self.rank + 1:
            return y
        return op.Mul(y, _columns(self.proj, self.rank + 1, self.rank + 2))

    def natural(self, y, rows):
        """Rows [L, K] of ``y`` [..., B, D] -> [L, K, B, D], zero where a direction never visits the token."""
        y = op.Reshape(y, _shape(-1, self.batch, self.channels))
        return op.Mul(op.Gather(y, op.Max(rows, _ints(0)), axis=0), self.seen()) if self.absent else op.Gather(
            y, rows, axis=0)

    def seen(self):
        """[L, K, 1, 1]: 1 where a direction visits a token, else 0."""
        return op.Unsqueeze(op.Cast(op.GreaterOrEqual(self.back, _ints(0)), to=FLOAT32), _ints(2, 3))


def ss2d_scan(
        x, proj, dt_weight, dt_bias, A_log, D_skip, order: str, height, width, index, merge: bool,
        backend: str = "auto",
):
    """Translation for ``torch.onnx.export``; arguments as of the operator, with a table. No states are returned."""
    call = _Call(x, proj, dt_weight, dt_bias, A_log, index, scan_routes(order, int(dt_weight.shape[0])) is None)
    y = call.single() if call.states == 1 else call.several()
    shared = merge and not call.absent and not call.own  # all directions skip with the same x
    if D_skip is not None and not shared:
        skipped = op.Mul(call.x if call.own else op.Unsqueeze(call.x, _ints(1)), op.Unsqueeze(D_skip, _ints(1)))
        y = op.Add(y, op.Mul(skipped, call.seen()) if call.absent else skipped)
    nothing = op.Constant(value_floats=[0.0])
    if not merge:
        return op.Transpose(y, perm=[2, 1, 0, 3]), nothing
    y = op.ReduceSum(y, _ints(1), keepdims=0)
    if D_skip is not None and shared:
        y = op.Add(y, op.Mul(call.x, op.ReduceSum(D_skip, _ints(0), keepdims=0)))
    return op.Transpose(y, perm=[1, 0, 2]), nothing


def selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, initial_state, backend: str = "auto"):
    """Translation for ``torch.onnx.export``; arguments as of the operator. Of what it returns, only y."""
    if not delta_softplus or z is not None or initial_state is not None:
        raise NotImplementedError(
            "no model of the suite calls selective_scan without softplus, with a gate or with an initial state")
    groups, states = int(B.shape[1]), int(B.shape[2])
    batch, channels, length = (op.Shape(u, start=i, end=i + 1) for i in range(3))

    def steps(t):
        """``[B, D, L] -> [L, G, B, 1, D / G]``."""
        t = op.Transpose(op.Reshape(t, _shape(batch, groups, -1, length)), perm=[3, 1, 0, 2])
        return op.Unsqueeze(t, _ints(3))

    def each(t):
        """Of each channel, ``[D] -> [G, 1, 1, D / G]``."""
        return op.Reshape(t, _ints(groups, 1, 1, -1))

    x, delta = steps(u), steps(delta)
    delta = _softplus(delta if delta_bias is None else op.Add(delta, each(delta_bias)))
    B, C = (op.Transpose(t, perm=[3, 1, 0, 2]) for t in (B, C))  # [L, G, B, N]
    A = op.Unsqueeze(op.Transpose(op.Reshape(A, _ints(groups, -1, states)), perm=[0, 2, 1]), _ints(1))
    state = _full(0.0, groups, batch, states, op.Div(channels, _ints(groups)))
    y = _outputs(
        state, delta, op.Mul(delta, x), op.Unsqueeze(B, _ints(-1)), op.Unsqueeze(C, _ints(-2)), A)
    if D is not None:
        y = op.Add(y, op.Mul(x, each(D)))
    y = op.Reshape(op.Transpose(y, perm=[2, 1, 4, 0, 3]), op.Shape(u))  # of [B, G, D / G, L, 1]
    nothing = op.Constant(value_floats=[0.0])
    return y, nothing, nothing, nothing


def remainder(x, divisor):
    """Of integers, such as the places in a table: torch.onnx has it for constant divisors only."""
    return op.Mod(x, op.CastLike(divisor, x))


def floor_divide(x, divisor):
    """Of sizes, such as ``-(-height // window)``: torch.onnx rounds negative ones up, as ``Div`` does."""
    divisor = op.CastLike(divisor, x)
    return op.Div(op.Sub(x, op.Mod(x, divisor)), divisor)


def gelu(x, approximate: str = "none"):
    """In the order of its factors that onnxruntime knows as one operator."""
    if approximate == "tanh":
        cubic = op.Mul(op.Mul(op.Mul(x, x), x), op.Constant(value_float=0.044715))
        inner = op.Tanh(op.Mul(op.Add(x, cubic), op.Constant(value_float=math.sqrt(2 / math.pi))))
    else:
        inner = op.Erf(op.Div(x, op.Constant(value_float=math.sqrt(2))))
    return op.Mul(op.Mul(x, op.Add(inner, op.Constant(value_float=1.0))), op.Constant(value_float=0.5))


TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.vmamba.ss2d_scan.default: ss2d_scan,
    torch.ops.vmamba.selective_scan.default: selective_scan,
    torch.ops.aten.gelu.default: gelu,
    torch.ops.aten.remainder.Scalar: remainder,
    operator.floordiv: floor_divide,
}
"""The ``custom_translation_table`` of ``torch.onnx.export``."""


def to_onnx(program: torch.export.ExportedProgram) -> torch.onnx.ONNXProgram:
    """Translate a traced classifier, with inputs ``images`` and outputs ``logits``."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    translated = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, verbose=False, input_names=["images"], output_names=["logits"],
        custom_translation_table=TRANSLATIONS)
    assert translated is not None  # as it is without dynamo only
    # a function that the body of a Scan calls is not brought along
    function = onnx_ir.from_proto(_softplus.to_function_proto())
    translated.model.functions[function.identifier()] = function
    onnx_ir.passes.Sequential(InlinePass(), RemoveUnusedFunctionsPass())(translated.model)
    return translated
