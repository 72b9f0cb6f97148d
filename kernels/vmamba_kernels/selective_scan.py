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


def _tokens_first(t: torch.Tensor, G: int, channels_last: bool) -> torch.Tensor:
    """[B, D, L] or [B, L, D] as a [B, L, G, D / G] view."""
    t = t if channels_last else t.transpose(1, 2)
    return t.unflatten(2, (G, -1))


def _states_first(t: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """[B, G, N, L] or [B, L, G, N] as a [B, G, N, L] view."""
    return t.permute(0, 2, 3, 1) if channels_last else t


def _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, channels_last) -> Scan:
    B, C = _states_first(B, channels_last), _states_first(C, channels_last)
    G, N = B.shape[1:3]
    x = _tokens_first(u, G, channels_last)
    A = A.float().view(G, -1, N).transpose(1, 2).contiguous()
    bias = delta_bias.float().contiguous() if delta_bias is not None else None
    skip = D.float().contiguous() if D is not None else None
    delta = _tokens_first(delta, G, channels_last)
    return Scan(x, delta, None, None, bias, A, B, C, skip, delta_softplus, visits=x.shape[1], width=x.shape[1])


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state, channels_last) -> None:
    check_device(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    if u.dim() != 3 or B.dim() != 4 or A.dim() != 2:
        raise ValueError(f"u, A, B have {u.dim()}, {A.dim()}, {B.dim()} axes, expected 3, 2, 4")
    for name, t in (("u", u), ("delta", delta), ("B", B), ("C", C), ("z", z)):
        if t is not None and t.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has dtype {t.dtype}, expected float16, bfloat16 or float32")
    if channels_last:
        batch, L, dim = u.shape
        G, N = B.shape[2:]
        shape, names, bc, bc_names = (batch, L, dim), "(B, L, D)", (batch, L, G, N), "(B, L, G, N)"
    else:
        batch, dim, L = u.shape
        G, N = B.shape[1:3]
        shape, names, bc, bc_names = (batch, dim, L), "(B, D, L)", (batch, G, N, L), "(B, G, N, L)"
    check_shape("delta", delta, shape, names)
    check_shape("B", B, bc, bc_names)
    check_shape("C", C, bc, bc_names)
    check_shape("A", A, (dim, N), "(D, N)")
    if dim % G:
        raise ValueError(f"u has D = {dim} channels, not a multiple of the G = {G} groups of B")
    if z is not None:
        check_shape("z", z, shape, names)
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
    channels_last: bool = False,
    save: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, SelectiveScanSaved | None]:
    """Run the scan.

    Args:
        u: [B, D, L] float16, bfloat16 or float32, any strides.
        delta: [B, D, L], likewise.
        A: [D, N] real.
        B: [B, G, N, L]; D is a multiple of G.
        C: [B, G, N, L].
        D: [D], or None.
        z: [B, D, L] gate, or None.
        delta_bias: [D], or None.
        delta_softplus: apply softplus to delta + delta_bias.
        initial_state: [B, D, N], or None for zeros.
        channels_last: u, delta, z and the output are [B, L, D], B and C [B, L, G, N].
        save: also return what ``selective_scan_backward`` needs.

    Returns:
        out in u's shape and dtype, the last state [B, D, N] float32, and what to save (None unless ``save``).

    Raises:
        ValueError: on a wrong shape, dtype or device.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, channels_last)
    s = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, channels_last)
    batch, L, G, per_group = s.x.shape
    N = s.A.shape[1]
    y = _launch.empty(u.shape, dtype=u.dtype, device=u.device)
    out = _launch.empty(u.shape, dtype=u.dtype, device=u.device) if z is not None else None
    if L == 0 or u.numel() == 0:
        raise ValueError(f"u is empty: {tuple(u.shape)}")
    last, states = scan_forward(
        s,
        _tokens_first(y, G, channels_last),
        gate=_tokens_first(z, G, channels_last) if z is not None else None,
        out=_tokens_first(out, G, channels_last) if out is not None else None,
        initial=initial_state.contiguous() if initial_state is not None else None,
        save=save,
    )
    last = last.transpose(2, 3).reshape(batch, G * per_group, N)
    saved = SelectiveScanSaved(y if z is not None else None, states) if states is not None else None
    return (y if out is None else out), last, saved


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
    channels_last: bool = False,
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
        channels_last: as above.

    Returns:
        Gradients in the shapes and dtypes of the inputs.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, channels_last)
    check_shape("dout", dout, tuple(u.shape), "that of u")
    s = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus, channels_last)
    batch, _, G, per_group = s.x.shape
    N = s.A.shape[1]
    dz = None
    dy = dout
    if z is not None:
        if saved.y is None:
            raise ValueError("saved.y is None: the forward ran without the gate z")
        dy, dz = gate_backward(dout, saved.y, z)
    du = _launch.empty(u.shape, dtype=u.dtype, device=u.device)
    ddelta = _launch.empty(u.shape, dtype=delta.dtype, device=u.device)
    if dlast_state is not None:
        dlast_state = dlast_state.float().reshape(batch, G, per_group, N).transpose(2, 3).contiguous()
    g = scan_backward(
        s,
        _tokens_first(dy, G, channels_last),
        saved.states,
        _tokens_first(du, G, channels_last),
        _tokens_first(ddelta, G, channels_last),
        dlast=dlast_state,
    )
    dB, dC = ((t.permute(0, 3, 1, 2) if channels_last else t).to(like.dtype) for t, like in ((g.dB, B), (g.dC, C)))
    dinitial = None
    if initial_state is not None:
        dinitial = g.initial.transpose(2, 3).reshape(initial_state.shape).to(initial_state.dtype)
    return SelectiveScanGradients(
        u=du,
        delta=ddelta,
        A=g.dA.transpose(1, 2).reshape(A.shape).to(A.dtype),
        B=dB,
        C=dC,
        D=g.skip.view(-1).to(D.dtype) if D is not None else None,
        z=dz,
        delta_bias=g.bias.view(-1).to(delta_bias.dtype) if delta_bias is not None else None,
        initial_state=dinitial,
    )
