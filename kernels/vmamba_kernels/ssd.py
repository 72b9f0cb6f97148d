"""The scan of Mamba-2 (Dao and Gu 2024): one decay rate for all channels of a head. Also without an order (VSSD).

step  = softplus(dt + dt_bias)                  (softplus if asked for)
state = exp(step * A) * state + step * x B^T    y = state C + D * x
causal=False: y = S C + D * x of the one state S = sum over all tokens of (-step * A) * x B^T
"""

from typing import NamedTuple

import torch

from . import _launch
from ._launch import cdiv, check_device, check_shape, fast_math, launch, pow2, rows_contiguous
from ._ssd_backward import ssd_backward_kernel, ssd_group_kernel
from ._ssd_forward import ssd_carry_kernel, ssd_forward_kernel, ssd_states_kernel
from .configs import segment_length
from .state_shapes import SSD_LIMIT, ssd_fits

_TILE = {"forward": 32, "backward": 64}  # steps; what a step costs within a tile grows with it
_ONE_WALK = 1024  # steps; longer sequences may be cut into segments
_CARRY_BLOCK = 1024


class SSDGradients(NamedTuple):
    """What ``ssd_backward`` returns; entries are None where the input was."""

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    dt_bias: torch.Tensor | None
    initial_state: torch.Tensor | None


class _Problem:
    """The arguments as the kernels take them.

    Args:
        x: and further arguments as of ``ssd_forward``.
    """

    def __init__(self, x, dt, A, B, C, D, dt_bias, dt_softplus, causal):
        self.x, self.dt, self.B, self.C = (rows_contiguous(t) for t in (x, dt, B, C))
        self.A = A.float().contiguous()
        self.bias = dt_bias.float().contiguous() if dt_bias is not None else None
        self.batch, self.length, self.heads, channels = x.shape
        self.skip = None
        if D is not None:
            wide = D.unsqueeze(1).expand(-1, channels) if D.dim() == 1 else D
            self.skip = wide.float().contiguous()
        self.groups, states = B.shape[2:]
        types = {t.dtype for t in (x, B, C)}
        narrow = torch.float32 not in types
        self.precision = "bf16" if types == {torch.bfloat16} else "tf32" if narrow else "ieee"
        self.state_shape = (self.batch, self.heads, channels, states)
        self.causal = causal
        tile = _TILE["backward"]
        tiles = cdiv(self.length, tile)
        if self.length > _ONE_WALK:
            self.segment = segment_length(self.batch * self.heads, tiles, 1, tile) * tile
        else:
            self.segment = tiles * tile
        self.segments = cdiv(self.length, self.segment)
        self.how = {
            "H": self.heads, "HEADS": self.heads // self.groups, "P": channels, "N": states, "BP": pow2(channels),
            "BN": pow2(states), "HAS_BIAS": self.bias is not None, "SOFTPLUS": dt_softplus, "CAUSAL": causal,
            "PRECISION": self.precision, "FAST": fast_math(),
        }  # fmt: skip

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return _launch.empty(shape, dtype=dtype, device=self.x.device)

    def layout(self, tile: int, sums: bool = False) -> dict[str, int]:
        """Threads for a tile and a state in registers and, with ``sums``, a group's; stages that fit."""
        largest = max(tile * self.how["BN"], self.how["BP"] * self.how["BN"], tile * self.how["BP"])
        return {"T": tile, "num_warps": 8 if largest > (2048 if sums else 4096) else 4,
                "num_stages": 2 if largest <= 4096 else 1}  # fmt: skip

    def walk(self, reverse: bool, vectors: torch.Tensor, start: torch.Tensor | None, save: bool) -> tuple:
        """States along the sequence, or gradients to them: those at tiles, and at the end of each segment.

        Args:
            reverse: gradients, from the last step to the first.
            vectors: [B, L, H, P], x or the gradient to y.
            start: [B, H, segments, P, N] float32 at the start of each segment, or None for zeros.
            save: return those at tiles.

        Returns:
            [B, H, tiles, P, N] or None, [B, H, segments, P, N] and the segments' decays [B, H, segments].
        """
        tile = _TILE["backward"]
        tiles = cdiv(self.length, tile)
        channels, states = self.state_shape[2:]
        kept = torch.bfloat16 if self.precision == "bf16" else torch.float32
        saved = self.new(self.batch, self.heads, tiles, channels, states, dtype=kept) if save else None
        ends = self.new(self.batch, self.heads, self.segments, channels, states)
        decay = self.new(self.batch, self.heads, self.segments)
        by = self.C if reverse else self.B
        launch(
            ssd_states_kernel, (self.batch * self.heads * self.segments,),
            vectors, self.dt, self.A, by, self.bias, start, saved, ends, decay,
            *vectors.stride()[:3], *self.dt.stride()[:2], *by.stride()[:3], self.length, self.segments, self.segment,
            tiles, **self.how, **self.layout(tile), HAS_START=start is not None, SAVE=save, ENDS=True, REVERSE=reverse,
        )  # fmt: skip
        return saved, ends, decay

    def carry(self, reverse: bool, start: torch.Tensor | None, ends: torch.Tensor, decay: torch.Tensor) -> torch.Tensor:
        """Make ``ends`` the states before each segment; returns the state after all."""
        last = self.new(*self.state_shape)
        size = self.state_shape[2] * self.state_shape[3]
        launch(
            ssd_carry_kernel, (self.batch * self.heads * cdiv(size, _CARRY_BLOCK),),
            ends, start, decay, last, self.segments,
            SIZE=size, BLOCK=min(_CARRY_BLOCK, pow2(size)), HAS_START=start is not None, REVERSE=reverse,
        )  # fmt: skip
        return last

    def starts(
        self, reverse: bool, vectors: torch.Tensor, start: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """States before each segment, and that after all; of a single segment what is given, and None."""
        if self.segments == 1:
            return start, None
        _, ends, decay = self.walk(reverse, vectors, None, save=False)
        last = self.carry(reverse, start, ends, decay)
        return ends, last

    def total(self, reverse: bool, vectors: torch.Tensor, start: torch.Tensor | None) -> torch.Tensor:
        """[B, H, P, N]: the state that all tokens make, or the gradient to it."""
        if self.segments == 1:
            return self.walk(reverse, vectors, start, save=False)[1].view(self.state_shape)
        _, last = self.starts(reverse, vectors, start)
        assert last is not None
        return last


def _check(x, dt, A, B, C, D, dt_bias, initial_state) -> None:
    check_device(x=x, dt=dt, A=A, B=B, C=C, D=D, dt_bias=dt_bias, initial_state=initial_state)
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(f"x and B have {x.dim()} and {B.dim()} axes, expected 4 and 4")
    for name, t in (("x", x), ("dt", dt), ("B", B), ("C", C)):
        if t.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has dtype {t.dtype}, expected float16, bfloat16 or float32")
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    if not x.numel() or not B.numel():
        raise ValueError(f"x and B have shapes {tuple(x.shape)} and {tuple(B.shape)}; neither may be empty")
    if not ssd_fits(channels, states):
        raise ValueError(
            f"x and B have P = {channels} channels and N = {states} states, expected a product of at most {SSD_LIMIT}"
        )
    check_shape("dt", dt, (batch, length, heads), "(B, L, H)")
    check_shape("A", A, (heads,), "(H,)")
    check_shape("B", B, (batch, length, groups, states), "(B, L, G, N)")
    check_shape("C", C, (batch, length, groups, states), "(B, L, G, N)")
    if heads % groups:
        raise ValueError(f"x has H = {heads} heads, not a multiple of the G = {groups} groups of B")
    if D is not None:
        check_shape("D", D, (heads, channels)[: D.dim()], "(H,) or (H, P)")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (heads,), "(H,)")
    if initial_state is not None:
        check_shape("initial_state", initial_state, (batch, heads, channels, states), "(B, H, P, N)")


def _contiguous(state: torch.Tensor | None) -> torch.Tensor | None:
    return state.float().contiguous() if state is not None else None


def ssd_forward(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    dt_softplus: bool = False,
    initial_state: torch.Tensor | None = None,
    causal: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the scan. Up to 1024 steps take one kernel; longer sequences of few heads and images run in segments.

    Args:
        x: [B, L, H, P] float16, bfloat16 or float32; the last axis is best of stride 1, as in dt, B, C.
        dt: [B, L, H].
        A: [H] real.
        B: [B, L, G, N]; head h has group ``h // (H / G)``. P times N is at most 16384, each padded to a power of two.
        C: [B, L, G, N].
        D: [H] or [H, P], or None.
        dt_bias: [H], or None.
        dt_softplus: apply softplus to dt + dt_bias.
        initial_state: [B, H, P, N], or None for zeros.
        causal: False for one state of all tokens, to which the initial state is added.

    Returns:
        y in x's shape and dtype, and the last state [B, H, P, N] float32.

    Raises:
        ValueError: on a wrong shape, dtype or device.
    """
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    s = _Problem(x, dt, A, B, C, D, dt_bias, dt_softplus, causal)
    y = s.new(*x.shape, dtype=x.dtype)
    start = _contiguous(initial_state)
    starts: torch.Tensor | None
    if causal:
        starts, found = s.starts(False, s.x, start)
        last = s.new(*s.state_shape) if found is None else found
    else:
        found = starts = last = s.total(False, s.x, start)
    launch(
        ssd_forward_kernel, (s.batch * s.heads * s.segments,),
        s.x, s.dt, s.A, s.B, s.C, s.skip, s.bias, starts, y, last,
        *s.x.stride()[:3], *s.dt.stride()[:2], *s.B.stride()[:3], *s.C.stride()[:3], s.length, s.segments, s.segment,
        **s.how, **s.layout(_TILE["forward"]), HAS_SKIP=s.skip is not None, HAS_START=starts is not None,
        LAST=found is None,
    )  # fmt: skip
    return y, last


def ssd_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_softplus: bool,
    initial_state: torch.Tensor | None,
    causal: bool = True,
    *,
    last_state: torch.Tensor | None = None,
    dlast_state: torch.Tensor | None = None,
) -> SSDGradients:
    """Gradients of ``ssd_forward``; deterministic. Nothing but its arguments is kept: the states are made again.

    Args:
        dy: gradient to y.
        x: and further arguments as given to the forward.
        dt: as above.
        A: as above.
        B: as above.
        C: as above.
        D: as above.
        dt_bias: as above.
        dt_softplus: as above.
        initial_state: as above.
        causal: as above.
        last_state: what the forward returned second, which saves work where not ``causal``.
        dlast_state: [B, H, P, N] gradient to the last state, or None.

    Returns:
        Gradients in the shapes and dtypes of the inputs.
    """
    _check(x, dt, A, B, C, D, dt_bias, initial_state)
    check_shape("dy", dy, tuple(x.shape), "that of x")
    s = _Problem(x, dt, A, B, C, D, dt_bias, dt_softplus, causal)
    dy = rows_contiguous(dy)
    start, dlast = _contiguous(initial_state), _contiguous(dlast_state)
    if causal:
        starts, _ = s.starts(False, s.x, start)
        dstarts, dinitial = s.starts(True, dy, dlast)
        states, _, _ = s.walk(False, s.x, starts, save=True)
        dstates, ends, _ = s.walk(True, dy, dstarts, save=True)
        if dinitial is None:
            dinitial = ends.view(s.state_shape)
    else:
        states = last_state if last_state is not None else s.total(False, s.x, start)
        dstates = dinitial = s.total(True, dy, dlast)

    tile = _TILE["backward"]
    tiles = cdiv(s.length, tile)
    dx, ddt, dB, dC = (s.new(*t.shape, dtype=t.dtype) for t in (x, dt, B, C))
    dvec = s.new(s.batch, tiles, s.heads, 2)
    dskip = s.new(s.batch, tiles, s.heads, x.shape[3]) if D is not None else None
    strides = (
        *dy.stride()[:3], *s.x.stride()[:3], *s.dt.stride()[:2], *s.B.stride()[:3], *s.C.stride()[:3], s.length, tiles
    )  # fmt: skip
    launch(
        ssd_backward_kernel, (s.batch * s.heads * tiles,),
        dy, s.x, s.dt, s.A, s.B, s.C, s.skip, s.bias, states, dstates, dx, ddt, dvec, dskip, *strides,
        **s.how, **s.layout(tile), HAS_SKIP=D is not None,
    )  # fmt: skip
    launch(
        ssd_group_kernel, (s.batch * s.groups * tiles,),
        dy, s.x, s.dt, s.A, s.B, s.C, s.bias, states, dstates, dB, dC, *strides, s.heads // s.groups,
        **s.how, **s.layout(tile, sums=True),
    )  # fmt: skip
    sums = dvec.sum((0, 1))
    dD = None
    if D is not None and dskip is not None:
        dD = dskip.sum((0, 1))
        dD = (dD.sum(1) if D.dim() == 1 else dD).to(D.dtype)
    return SSDGradients(
        x=dx,
        dt=ddt,
        A=sums[:, 0].to(A.dtype),
        B=dB,
        C=dC,
        D=dD,
        dt_bias=sums[:, 1].to(dt_bias.dtype) if dt_bias is not None else None,
        initial_state=dinitial.to(initial_state.dtype) if initial_state is not None else None,
    )
