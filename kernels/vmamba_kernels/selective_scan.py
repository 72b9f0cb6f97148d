"""The selective scan of Mamba (Gu and Dao 2023, algorithm 2) in mamba-ssm's signature.

delta = softplus(delta + delta_bias)          (softplus if asked for)
h     = exp(delta * A) * h + delta * B * u
out   = (<C, h> + D * u) * silu(z)
"""

from typing import NamedTuple

import torch

from . import _launch
from ._gate import gate_backward
from ._launch import check_device, check_shape
from ._scan_launch import Scan, scan_backward, scan_forward


class SelectiveScanSaved(NamedTuple):
    """What the backward needs beyond the inputs."""

    y: torch.Tensor | None  # output before the gate, None without a gate
    states: torch.Tensor


class SelectiveScanGradients(NamedTuple):
    """What ``selective_scan_backward`` returns; entries are None where the input was."""

    u: torch.Tensor
    delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    z: torch.Tensor | None
    delta_bias: torch.Tensor | None
    initial_state: torch.Tensor | None


def _tokens_first(t: torch.Tensor, G: int) -> torch.Tensor:
    """[B, D, L] as a [B, L, G, D / G] view."""
    return t.transpose(1, 2).unflatten(2, (G, -1))


def _scan(u, delta, A, B, C, D, delta_bias, delta_softplus) -> Scan:
    G, N = B.shape[1:3]
    L = u.shape[2]
    return Scan(
        x=_tokens_first(u, G),
        delta=_tokens_first(delta, G),
        factors=None,
        weight=None,
        bias=delta_bias.float().contiguous() if delta_bias is not None else None,
        A=A.float().contiguous().view(G, -1, N),
        log=False,
        B=B,
        C=C,
        skip=D.float().contiguous() if D is not None else None,
        softplus=delta_softplus,
        order=0,
        index=None,
        visits=L,
        height=1,
        width=L,
    )


def _like(t: torch.Tensor) -> torch.Tensor:
    """Uninitialised output: channels-last where ``t`` is, else contiguous."""
    if t.mT.is_contiguous() and not t.is_contiguous():
        return _launch.empty(t.mT.shape, dtype=t.dtype, device=t.device).mT
    return _launch.empty(t.shape, dtype=t.dtype, device=t.device)


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    check_device(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    if u.dim() != 3 or B.dim() != 4 or A.dim() != 2:
        raise ValueError(f"u, A, B have {u.dim()}, {A.dim()}, {B.dim()} axes, expected 3, 2, 4")
    for name, t in (("u", u), ("delta", delta), ("B", B), ("C", C), ("z", z)):
        if t is not None and t.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has dtype {t.dtype}, expected float16, bfloat16 or float32")
    batch, dim, L = u.shape
    G, N = B.shape[1:3]
    if not u.numel():
        raise ValueError(f"u is empty: {tuple(u.shape)}")
    check_shape("delta", delta, (batch, dim, L), "(B, D, L)")
    check_shape("B", B, (batch, G, N, L), "(B, G, N, L)")
    check_shape("C", C, (batch, G, N, L), "(B, G, N, L)")
    check_shape("A", A, (dim, N), "(D, N)")
    if dim % G:
        raise ValueError(f"u has D = {dim} channels, not a multiple of the G = {G} groups of B")
    if z is not None:
        check_shape("z", z, (batch, dim, L), "(B, D, L)")
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        if t is not None:
            check_shape(name, t, (dim,), "(D,)")
    if initial_state is not None:
        check_shape("initial_state", initial_state, (batch, dim, N), "(B, D, N)")


def selective_scan_forward(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: torch.Tensor | None = None,
    *,
    save: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, SelectiveScanSaved | None]:
    """Run the scan.

    Args:
        u: [B, D, L] float16, bfloat16 or float32, any strides. Fastest channels-last, as a transposed [B, L, D];
            the output has the same layout then.
        delta: [B, D, L], likewise.
        A: [D, N] real.
        B: [B, G, N, L]; D is a multiple of G.
        C: [B, G, N, L].
        D: [D], or None.
        z: [B, D, L] gate, or None.
        delta_bias: [D], or None.
        delta_softplus: apply softplus to delta + delta_bias.
        initial_state: [B, D, N], or None for zeros.
        save: also return what ``selective_scan_backward`` needs.

    Returns:
        out in u's shape and dtype, the last state [B, D, N] float32, and what to save (None unless ``save``).

    Raises:
        ValueError: on a wrong shape, dtype or device.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    s = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    G = B.shape[1]
    y = _like(u)
    out = _like(u) if z is not None else None
    last, states = scan_forward(
        s,
        _tokens_first(y, G),
        gate=_tokens_first(z, G) if z is not None else None,
        out=_tokens_first(out, G) if out is not None else None,
        initial=_states_in(initial_state, G),
        save=save,
    )
    saved = SelectiveScanSaved(y if z is not None else None, states) if states is not None else None
    return (y if out is None else out), _states_out(last), saved


def _states_in(state: torch.Tensor | None, G: int) -> torch.Tensor | None:
    """[B, D, N] as a [B, G, N, D / G] view."""
    return state.unflatten(1, (G, -1)).transpose(2, 3) if state is not None else None


def _states_out(states: torch.Tensor) -> torch.Tensor:
    """[B, G, N, D / G] as [B, D, N]."""
    return states.transpose(2, 3).flatten(1, 2)


def selective_scan_backward(
    dout: torch.Tensor,
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    initial_state: torch.Tensor | None,
    saved: SelectiveScanSaved,
    *,
    dlast_state: torch.Tensor | None = None,
) -> SelectiveScanGradients:
    """Gradients of ``selective_scan_forward``; deterministic.

    Args:
        dout: gradient to the output.
        u: and further arguments as given to the forward.
        delta: as above.
        A: as above.
        B: as above.
        C: as above.
        D: as above.
        z: as above.
        delta_bias: as above.
        delta_softplus: as above.
        initial_state: as above.
        saved: what the forward returned third.
        dlast_state: [B, D, N] gradient to the last state, or None.

    Returns:
        Gradients in the shapes and dtypes of the inputs, and in their layout where that is channels-last.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    check_shape("dout", dout, tuple(u.shape), "that of u")
    s = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    G = B.shape[1]
    dz = None
    dy = dout
    if z is not None:
        if saved.y is None:
            raise ValueError("saved.y is None: the forward ran without the gate z")
        dy, dz = gate_backward(dout, saved.y, z)
    du = _like(u)
    ddelta = _like(delta)
    dB, dC = (_launch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (B, C))
    g = scan_backward(
        s,
        _tokens_first(dy, G),
        saved.states,
        _tokens_first(du, G),
        _tokens_first(ddelta, G),
        dB,
        dC,
        initial=_states_in(initial_state, G),
        dlast=_states_in(dlast_state, G),
    )
    return SelectiveScanGradients(
        u=du,
        delta=ddelta,
        A=g.dA.reshape(A.shape).to(A.dtype),
        B=dB,
        C=dC,
        D=g.skip.view(-1).to(D.dtype) if D is not None else None,
        z=dz,
        delta_bias=g.bias.view(-1).to(delta_bias.dtype) if delta_bias is not None else None,
        initial_state=_states_out(g.initial).to(initial_state.dtype) if initial_state is not None else None,
    )
