"""The SS2D scan: K selective scans over one channels-last image in K orders, with no copy of the image for any of them.

    delta = softplus(dt_weight[k] @ factors + dt_bias[k])
    h     = exp(delta * A) * h + delta * B * x          A = -exp(A_log[k])
    y_k   = <C, h> + D_skip[k] * x

Mamba (Gu and Dao 2023, equations 2a, 2b, 4), with the four orders of VMamba (Liu et al. 2024, section 4.2).
"""

from functools import lru_cache
from typing import NamedTuple

import torch

from . import _launch, configs
from ._launch import check_device, check_shape, fast_math, rows_contiguous
from ._merge import merge_directions
from ._scan_launch import Scan, scan_backward, scan_forward, segment_entries
from ._ss2d_backward import ss2d_bwd_kernel_n1
from ._ss2d_forward import ss2d_fwd_kernel_n1
from ._ss2d_products import projection_gradients, weight_gradient
from ._sums import Sums
from .state_shapes import TILE, selective_scan_states_shape, ss2d_states_shape

_ORDERS = {"uni": 0, "bidi": 1, "cross": 2}
_TABLE = 3


class SS2DGradients(NamedTuple):
    """What ``ss2d_backward`` returns; entries are None where the input was."""

    x: torch.Tensor
    proj: torch.Tensor
    dt_weight: torch.Tensor
    dt_bias: torch.Tensor | None
    A_log: torch.Tensor
    D_skip: torch.Tensor | None


class _Problem(NamedTuple):
    """Checked sizes of one call."""

    B: int
    L: int
    D: int
    K: int
    N: int
    R: int
    has_c: bool
    own: bool  # each direction has activations of its own
    order: int
    visits: int  # visits per direction
    height: int
    width: int
    precise: bool  # float32 input

    @property
    def general(self) -> bool:
        """Whether the general kernels run, and not those for one state and one x."""
        return self.N > 1 or self.own


class _Kind(NamedTuple):
    """What is checked of a tensor."""

    shape: torch.Size
    dtype: torch.dtype


def _check(x, proj, dt_weight, dt_bias, A_log, D_skip, order, index, height, width) -> _Problem:
    tensors = {
        "x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A_log": A_log, "D_skip": D_skip,
        "index": index,
    }  # fmt: skip
    check_device(**tensors)
    kinds = [_Kind(t.shape, t.dtype) if t is not None else None for t in tensors.values()]
    return _problem(*kinds, order, height, width)


@lru_cache(maxsize=1024)
def _problem(x, proj, dt_weight, dt_bias, A_log, D_skip, index, order, height, width) -> _Problem:
    """The sizes of a call, from a `_Kind` for each tensor; found once for calls of one kind."""
    own = len(x.shape) == 4
    axes_of_x = 4 if own else 3
    for name, t, axes in (("x", x, axes_of_x), ("proj", proj, 4), ("dt_weight", dt_weight, 3), ("A_log", A_log, 3)):
        if len(t.shape) != axes:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {axes} axes")
    for name, t in (("x", x), ("proj", proj)):
        if t.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise ValueError(f"{name} has dtype {t.dtype}, expected float16, bfloat16 or float32")
    for name, t in (("dt_weight", dt_weight), ("dt_bias", dt_bias), ("A_log", A_log), ("D_skip", D_skip)):
        if t is not None and t.dtype != torch.float32:
            raise ValueError(f"{name} has dtype {t.dtype}, parameters must be float32")
    B, L, D = x.shape[0], x.shape[1], x.shape[-1]
    K, _, R = dt_weight.shape
    N = A_log.shape[2]
    if own:
        check_shape("x", x, (B, L, K, D), "(B, L, K, D)")
    check_shape("dt_weight", dt_weight, (K, D, R), "(K, D, R)")
    check_shape("A_log", A_log, (K, D, N), "(K, D, N)")
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (K, D), "(K, D)")
    if D_skip is not None:
        check_shape("D_skip", D_skip, (K, D), "(K, D)")
    has_c = proj.shape[3] != R + N
    if not has_c and (N != 1 or own):
        raise ValueError(
            f"C may be omitted only for N = 1 and one x for all directions: proj has {proj.shape[3]} entries per "
            f"direction, R = {R}, N = {N}"
        )
    check_shape("proj", proj, (B, L, K, R + 2 * N if has_c else R + 1), "(B, L, K, R + 2N)")
    if index is not None:
        if len(index.shape) != 2 or index.shape[0] != K or index.dtype != torch.int32:
            raise ValueError(f"index has shape {tuple(index.shape)}, dtype {index.dtype}; expected int32 ({K}, visits)")
        return _Problem(B, L, D, K, N, R, has_c, own, _TABLE, index.shape[1], 1, L, x.dtype == torch.float32)
    if order not in _ORDERS:
        raise ValueError(f"order is {order!r}, expected one of {sorted(_ORDERS)} or an index table")
    if height * width != L:
        raise ValueError(f"x has L = {L} tokens, height x width is {height} x {width} = {height * width}")
    if order == "cross" and K != 4:
        raise ValueError(f"order 'cross' has 4 directions, the parameters have K = {K}")
    if order == "bidi" and K % 2:
        raise ValueError(f"order 'bidi' needs an even number of directions, the parameters have K = {K}")
    if order == "cross" and 1 in (height, width):
        order = "bidi"  # a single row or column: both routes are the same
    if order == "cross" and L * height >= 2**32:
        raise ValueError(
            f"order 'cross' takes height * L < 2**32, got {height} * {L}; pass the order as an index table"
        )
    return _Problem(B, L, D, K, N, R, has_c, own, _ORDERS[order], L, height, width, x.dtype == torch.float32)


def _contiguous(*parameters: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [t.contiguous() if t is not None else None for t in parameters]


def _output(p: _Problem, dtype: torch.dtype, device: torch.device, covers: bool) -> torch.Tensor:
    """[B, K, L, D]; zeroed when the table may leave tokens out."""
    make = _launch.empty if p.order != _TABLE or covers else torch.zeros
    return make((p.B, p.K, p.L, p.D), dtype=dtype, device=device)


def ss2d_forward(
    x: torch.Tensor,
    proj: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D_skip: torch.Tensor | None,
    *,
    order: str | None = None,
    index: torch.Tensor | None = None,
    height: int = 1,
    width: int = 1,
    merge: bool = True,
    save_states: bool = False,
    index_covers: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the scan.

    Args:
        x: [B, L, D] float16, bfloat16 or float32; tokens row-major, last axis contiguous, other strides free.
            [B, L, K, D] where each direction has activations of its own.
        proj: [B, L, K, R + 2N], any of the same dtypes, natural token order: delta factors (R), B (N), C (N).
            Without C (last axis R + 1, N = 1, x [B, L, D]) the state itself is the output.
        dt_weight: [K, D, R] float32.
        dt_bias: [K, D] float32, or None.
        A_log: [K, D, N] float32; A = -exp(A_log).
        D_skip: [K, D] float32, or None.
        order: "uni", "bidi" or "cross". Not used when ``index`` is given.
        index: [K, visits] int32 natural token positions in order of visit, each token at most once per direction.
            -1 is a padding slot: a zero token, at which the state decays but nothing is read or written.
        height: rows of the token grid. Any value recompiles nothing.
        width: columns of the token grid.
        merge: sum the directions.
        save_states: also return what ``ss2d_backward`` needs.
        index_covers: promise that every direction of ``index`` visits every token; saves zeroing the output.

    Returns:
        y [B, L, D] (merged) or [B, K, L, D], both at natural positions, in x's dtype (float32 for float16),
        and the states (None unless ``save_states``): fp32, but for N = 1 in the type of y.

    Raises:
        ValueError: on a wrong shape, dtype, device or order.
    """
    p = _check(x, proj, dt_weight, dt_bias, A_log, D_skip, order, index, height, width)
    x, proj = rows_contiguous(x), rows_contiguous(proj) if p.general else proj.contiguous()
    dt_weight, dt_bias, A_log, D_skip = _contiguous(dt_weight, dt_bias, A_log, D_skip)
    y = _output(p, _launch.accumulator_dtype(x.dtype), x.device, index_covers)
    if p.general:
        scan = _general(p, x, proj, dt_weight, dt_bias, A_log, D_skip, index)
        _, states = scan_forward(scan, _per_direction(y, p.K), save=save_states)
        return (merge_directions(y, y.dtype) if merge else y), states
    states = None
    if save_states:
        shape = ss2d_states_shape(p.B, p.K, p.visits, p.D, 1)
        states = _launch.empty(shape, dtype=y.dtype, device=x.device)
    if y.numel():
        sub, stages, registers = configs.config("ss2d_fwd", p.D)
        per_image = -(-p.D // (32 * sub)) * p.K
        images = configs.images_per_program(p.B, per_image)
        tiles = -(-p.visits // TILE)
        span = configs.segment_length(p.B * per_image, tiles, 1, TILE)
        segments = -(-tiles // span)
        entry = None
        if segments > 1:
            scan = _general(p, x, proj, dt_weight, dt_bias, A_log, D_skip, index)
            entry = segment_entries(scan, scan.x, span * TILE, adjoint=False)
        grid = (p.B // images * segments * per_image,)
        even = p.visits % TILE == 0
        _launch.launch(
            ss2d_fwd_kernel_n1, grid,
            x, proj, dt_weight, dt_bias, A_log, D_skip, y, states, A_log if entry is None else entry, index,
            x.stride(0), p.B, segments, span, images, p.L, p.visits, p.height, p.width, -(-(2**32) // p.height),
            EVEN=even, twin={"EVEN": not even},
            X_ROW=x.stride(1), D=p.D, K=p.K, R=p.R, SUB=sub, STAGES=stages, ORDER=p.order,
            HAS_C=p.has_c, HAS_BIAS=dt_bias is not None, HAS_SKIP=D_skip is not None, SAVE=save_states,
            PRECISE=p.precise, FAST=fast_math(), num_warps=1, maxnreg=registers,
        )  # fmt: skip
    return (merge_directions(y, y.dtype) if merge else y), states


def ss2d_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    proj: torch.Tensor,
    dt_weight: torch.Tensor,
    dt_bias: torch.Tensor | None,
    A_log: torch.Tensor,
    D_skip: torch.Tensor | None,
    states: torch.Tensor,
    *,
    order: str | None = None,
    index: torch.Tensor | None = None,
    height: int = 1,
    width: int = 1,
    index_covers: bool = False,
    sums: Sums | None = None,
) -> SS2DGradients:
    """Gradients of ``ss2d_forward``. Deterministic: no atomics, fixed summation order.

    Args:
        dy: gradient to y, [B, L, D] (merged forward) or [B, K, L, D].
        x: and all further arguments as given to ``ss2d_forward``.
        proj: as above.
        dt_weight: as above.
        dt_bias: as above.
        A_log: as above.
        D_skip: as above.
        states: the states that ``ss2d_forward(save_states=True)`` returned.
        order: as above.
        index: as above.
        height: as above.
        width: as above.
        index_covers: as above.
        sums: run by the caller, who then has the gradients to the parameters; None: they are found at once.

    Returns:
        Gradients in the shapes and dtypes of the inputs (parameters: float32).
    """
    p = _check(x, proj, dt_weight, dt_bias, A_log, D_skip, order, index, height, width)
    merged = dy.dim() == 3
    check_shape("dy", dy, (p.B, p.L, p.D) if merged else (p.B, p.K, p.L, p.D), "(B, L, D) or (B, K, L, D)")
    x, dy = rows_contiguous(x), rows_contiguous(dy)
    proj = rows_contiguous(proj) if p.general else proj.contiguous()
    dt_weight, dt_bias, A_log, D_skip = _contiguous(dt_weight, dt_bias, A_log, D_skip)
    if p.general:
        return _backward_general(p, dy, x, proj, dt_weight, dt_bias, A_log, D_skip, states, index, index_covers)
    check_shape("states", states, ss2d_states_shape(p.B, p.K, p.visits, p.D, 1), "(B, K, tiles, D)")
    _, stages, registers = configs.config("ss2d_bwd", p.D)
    blocks = -(-p.D // 32)
    images = configs.images_per_program(p.B, blocks * p.K)
    tiles = -(-p.visits // TILE)
    span = configs.segment_length(p.B * blocks * p.K, tiles, 1, TILE)
    segments = -(-tiles // span)
    groups = p.B // images * segments
    dx = _output(p, _launch.accumulator_dtype(x.dtype), x.device, index_covers)
    make = _launch.empty if p.order != _TABLE or index_covers else torch.zeros
    dbc = make((blocks, p.K, p.B, p.L, proj.shape[3] - p.R), dtype=torch.float32, device=x.device)
    dz = make((p.K, p.B * p.L, p.D), dtype=dx.dtype, device=x.device)
    dvec = _launch.empty((groups, 3, p.K, p.D), dtype=torch.float32, device=x.device)
    if dx.numel():
        entry = None
        if segments > 1:
            scan = _general(p, x, proj, dt_weight, dt_bias, A_log, D_skip, index)
            entry = segment_entries(scan, _per_direction(dy, p.K), span * TILE, adjoint=True)
        even = p.visits % TILE == 0
        _launch.launch(
            ss2d_bwd_kernel_n1, (groups * blocks * p.K,),
            dy, x, proj, dt_weight, dt_bias, A_log, D_skip, states,
            dx, dbc, dz, dvec, A_log if entry is None else entry, index,
            x.stride(0), dy.stride(0), 0 if merged else dy.stride(1),
            p.B, segments, span, images, p.L, p.visits, p.height, p.width, -(-(2**32) // p.height),
            EVEN=even, twin={"EVEN": not even},
            X_ROW=x.stride(1), DY_ROW=dy.stride(-2), D=p.D, K=p.K, R=p.R, STAGES=stages,
            ORDER=p.order, HAS_C=p.has_c, HAS_BIAS=dt_bias is not None, HAS_SKIP=D_skip is not None,
            PRECISE=p.precise, FAST=fast_math(), num_warps=1, maxnreg=registers,
        )  # fmt: skip
    wanted = Sums() if sums is None else sums
    dproj, dweight = projection_gradients(dz, dt_weight, proj, dbc, wanted)
    dbias, dA, dskip = wanted.over_rows(dvec.view(groups, 3 * p.K * p.D)).view(3, p.K, p.D).unbind()
    if sums is None:
        wanted.run()
    return SS2DGradients(
        x=merge_directions(dx, x.dtype),
        proj=dproj,
        dt_weight=dweight,
        dt_bias=dbias if dt_bias is not None else None,
        A_log=dA.view(A_log.shape),
        D_skip=dskip if D_skip is not None else None,
    )


def _per_direction(t: torch.Tensor, K: int) -> torch.Tensor:
    """[B, L, D] or [B, K, L, D] as a [B, L, K, D] view."""
    return t.unsqueeze(2).expand(-1, -1, K, -1) if t.dim() == 3 else t.transpose(1, 2)


def _general(p: _Problem, x, proj, dt_weight, dt_bias, A_log, D_skip, index) -> Scan:
    """The call in the common form of the general kernels: a group per direction."""
    bc = proj.permute(0, 2, 3, 1)  # [B, K, P, L]
    return Scan(
        x=x if p.own else _per_direction(x, p.K),
        delta=None,
        factors=proj[..., : p.R],
        weight=dt_weight,
        bias=dt_bias,
        A=A_log,
        log=True,
        B=bc[:, :, p.R : p.R + p.N],
        C=bc[:, :, p.R + p.N :] if p.has_c else None,
        skip=D_skip,
        softplus=True,
        order=p.order,
        index=index,
        visits=p.visits,
        height=p.height,
        width=p.width,
    )


def _backward_general(
    p: _Problem, dy, x, proj, dt_weight, dt_bias, A_log, D_skip, states, index, covers
) -> SS2DGradients:
    scan = _general(p, x, proj, dt_weight, dt_bias, A_log, D_skip, index)
    expected = selective_scan_states_shape(p.B, p.K, p.visits, p.D, p.N)
    check_shape("states", states, expected, "(B, K, groups of tiles, N, D)")
    make = _launch.empty if p.order != _TABLE or covers else torch.zeros
    dtype = _launch.accumulator_dtype(x.dtype)
    dx = make(x.shape, dtype=dtype, device=x.device) if p.own else _output(p, dtype, x.device, covers)
    dz = make((p.K, p.B, p.L, p.D), dtype=dtype, device=x.device)
    dproj = make(proj.shape, dtype=proj.dtype, device=x.device)
    dbc = dproj.permute(0, 2, 3, 1)
    if not dx.numel():
        dt_bias, D_skip = (torch.zeros_like(t) if t is not None else None for t in (dt_bias, D_skip))
        none = torch.empty_like(x), dproj
        return SS2DGradients(*none, torch.zeros_like(dt_weight), dt_bias, torch.zeros_like(A_log), D_skip)
    g = scan_backward(
        scan,
        _per_direction(dy, p.K),
        states,
        dx if p.own else _per_direction(dx, p.K),
        dz.permute(1, 2, 0, 3),
        dbc[:, :, p.R : p.R + p.N],
        dbc[:, :, p.R + p.N :] if p.has_c else None,
    )
    dz = dz.view(p.K, p.B * p.L, p.D)
    factors = proj[..., : p.R].flatten(0, 1).transpose(0, 1)
    dproj.view(p.B * p.L, p.K, -1)[..., : p.R].copy_(torch.bmm(dz, dt_weight.to(dz.dtype)).transpose(0, 1))
    return SS2DGradients(
        x=dx.to(x.dtype) if p.own else merge_directions(dx, x.dtype),
        proj=dproj,
        dt_weight=weight_gradient(dz, factors),
        dt_bias=g.bias if dt_bias is not None else None,
        A_log=g.dA * -torch.exp(A_log),
        D_skip=g.skip if D_skip is not None else None,
    )
