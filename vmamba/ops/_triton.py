"""Triton path of the scan operators: the kernels package behind this package's argument conventions.

Imports the kernels, and with them Triton, when a function is called and not before.
"""
from __future__ import annotations

from typing import Any

from torch import Tensor

from vmamba.scans import scan_order

from ._shapes import check_tokens


def sums() -> Any:
    """What backwards may leave the sums of their gradients to parameters to; its ``run()`` finds them in one launch."""
    import vmamba_kernels
    return vmamba_kernels.Sums()


def selective_scan_forward(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``_torch_selective.forward``, with states of the kernels' own shape."""
    import vmamba_kernels
    y, last_state, saved = vmamba_kernels.selective_scan_forward(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, _float(initial_state), save=True)
    ungated = saved.y if saved.y is not None else u.new_empty(0)
    return y, last_state, saved.states, ungated


def selective_scan_backward(
        dy: Tensor, dlast: Tensor | None, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None, z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
        initial_state: Tensor | None, states: Tensor, ungated: Tensor,
) -> tuple[Tensor | None, ...]:
    """As ``_torch_selective.backward``."""
    import vmamba_kernels
    saved = vmamba_kernels.SelectiveScanSaved(ungated if z is not None else None, states)
    return tuple(vmamba_kernels.selective_scan_backward(
        dy, u, delta, A, B, C, D, z, delta_bias, delta_softplus, _float(initial_state), saved, dlast_state=dlast))


def selective_scan_states_shape(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    """Shape of the saved states."""
    from vmamba_kernels.state_shapes import selective_scan_states_shape
    batch, channels, length = u.shape
    return selective_scan_states_shape(batch, B.shape[1], length, channels // B.shape[1], A.shape[1])


def ss2d_forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool, save: bool = True,
) -> tuple[Tensor, Tensor]:
    """As ``_torch_ss2d.forward``, with states of the kernels' own shape; empty unless saved."""
    import vmamba_kernels
    y, states = vmamba_kernels.ss2d_forward(
        x, proj, *_parameters(dt_weight, dt_bias, A_log, D_skip), merge=merge, save_states=save,
        **_order(x, dt_weight, order, height, width, index))
    return y, y.new_empty(0) if states is None else states


def ss2d_backward(
        dy: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor,
        D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None, merge: bool,
        states: Tensor, sums: Any = None,
) -> tuple[Tensor | None, ...]:
    """As ``_torch_ss2d.backward``; gradients to parameters are there when ``sums`` have run, see :func:`sums`."""
    import vmamba_kernels
    return tuple(vmamba_kernels.ss2d_backward(
        dy, x, proj, *_parameters(dt_weight, dt_bias, A_log, D_skip), states, sums=sums,
        **_order(x, dt_weight, order, height, width, index)))


def ss2d_norm_forward(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, merged, states)``, of which only y is not empty unless ``save``."""
    import vmamba_kernels
    parts, states = ss2d_forward(
        x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, merge=False, save=save)
    y, merged = vmamba_kernels.merge_norm_forward(
        parts, norm_weight, norm_bias, eps=eps, gate=gate, out_dtype=x.dtype, save=save)
    return y, parts.new_empty(0) if merged is None else merged, states


def ss2d_norm_backward(
        dy: Tensor, merged: Tensor, x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None,
        A_log: Tensor, D_skip: Tensor | None, order: str, height: int, width: int, index: Tensor | None,
        norm_weight: Tensor, norm_bias: Tensor, gate: Tensor | None, eps: float, states: Tensor,
        sums: Any = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, proj, dt_weight, dt_bias, A_log, D_skip, norm_weight, norm_bias, gate).

    Those to parameters are there when ``sums`` have run.
    """
    import vmamba_kernels
    norm = vmamba_kernels.merge_norm_backward(dy, merged, norm_weight, norm_bias, eps=eps, gate=gate, sums=sums)
    scan = ss2d_backward(
        norm.merged, x, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, index, True, states, sums)
    return *scan, norm.weight, norm.bias, norm.gate


def ssd_fits(x: Tensor, B: Tensor) -> bool:
    """Whether the kernels of ``ssd_scan`` take heads of so many channels and states."""
    from vmamba_kernels.state_shapes import ssd_fits
    return ssd_fits(x.shape[-1], B.shape[-1])


def ssd_forward(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None, causal: bool,
) -> tuple[Tensor, Tensor]:
    """As ``_torch_ssd.forward``."""
    import vmamba_kernels
    return vmamba_kernels.ssd_forward(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal)


def ssd_backward(
        dy: Tensor, dlast: Tensor | None, last: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
        D: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, initial_state: Tensor | None, causal: bool,
) -> tuple[Tensor | None, ...]:
    """As ``_torch_ssd.backward``, in the dtypes of the arguments."""
    import vmamba_kernels
    return tuple(vmamba_kernels.ssd_backward(
        dy, x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal, last_state=last, dlast_state=dlast))


def add_norm_forward(
        x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float,
) -> tuple[Tensor, Tensor]:
    """``(total, y)`` in the shape of x."""
    import vmamba_kernels
    return vmamba_kernels.add_norm_forward(x, branch, _float(scale), weight, bias, eps=eps)


def add_norm_backward(
        dy: Tensor, dtotal: Tensor | None, total: Tensor, scale: Tensor | None, weight: Tensor, bias: Tensor,
        eps: float, sums: Any = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, branch, weight, bias); that to an unscaled branch is left out, being that to x.

    Those to parameters are there when ``sums`` have run.
    """
    import vmamba_kernels
    got = vmamba_kernels.add_norm_backward(dy, dtotal, total, _float(scale), weight, bias, eps=eps, sums=sums)
    return got.x, got.branch if scale is not None else None, got.weight, got.bias


def weights_forward(q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool) -> Tensor:
    """As ``_torch_neighborhood.weights_forward``."""
    import vmamba_kernels
    return vmamba_kernels.neighborhood_weights_forward(q, k, bias, window, dilated)


def weights_backward(
        dweights: Tensor, weights: Tensor, q: Tensor, k: Tensor, window: int, dilated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_torch_neighborhood.weights_backward``."""
    import vmamba_kernels
    return vmamba_kernels.neighborhood_weights_backward(dweights, weights, q, k, window, dilated)


def apply_forward(weights: Tensor, v: Tensor, window: int, dilated: bool) -> Tensor:
    """As ``_torch_neighborhood.apply_forward``."""
    import vmamba_kernels
    return vmamba_kernels.neighborhood_apply_forward(weights, v, window, dilated)


def apply_backward(dy: Tensor, weights: Tensor, v: Tensor, window: int, dilated: bool) -> tuple[Tensor, Tensor]:
    """As ``_torch_neighborhood.apply_backward``."""
    import vmamba_kernels
    return vmamba_kernels.neighborhood_apply_backward(dy, weights, v, window, dilated)


def depthwise_conv_silu_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    import vmamba_kernels
    return vmamba_kernels.depthwise_conv_silu_forward(x, weight, bias)


def depthwise_conv_silu_backward(
        dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, sums: Any = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight, bias); those to parameters are there when ``sums`` have run."""
    import vmamba_kernels
    return tuple(vmamba_kernels.depthwise_conv_silu_backward(dy, x, weight, bias, sums))


def depthwise_conv_add_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    import vmamba_kernels
    return vmamba_kernels.depthwise_conv_add_forward(x, weight, bias)


def depthwise_conv_add_backward(
        dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of (x, weight, bias)."""
    import vmamba_kernels
    return tuple(vmamba_kernels.depthwise_conv_add_backward(dy, x, weight, bias))


def gelu_backward(dy: Tensor, x: Tensor, sums: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The activation again, the gradient of x, and, when ``sums`` have run, its sum over rows, float32."""
    import vmamba_kernels
    return vmamba_kernels.gelu_backward(dy, x, sums)


def ss2d_states_shape(x: Tensor, A_log: Tensor, steps: int) -> tuple[int, ...]:
    """Shape of the saved states for ``steps`` steps per direction."""
    from vmamba_kernels.state_shapes import selective_scan_states_shape, ss2d_states_shape
    shape = selective_scan_states_shape if x.ndim == 4 else ss2d_states_shape
    return shape(x.shape[0], A_log.shape[0], steps, x.shape[-1], A_log.shape[2])


def _float(t: Tensor | None) -> Tensor | None:
    return t.float() if t is not None else None


def _parameters(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Parameters as the kernels take them, in float32."""
    return tuple(_float(t) for t in tensors)


def _order(
        x: Tensor, dt_weight: Tensor, order: str, height: int, width: int, index: Tensor | None) -> dict[str, Any]:
    """The kernels walk row and column orders by arithmetic and any other by its table."""
    if index is not None:
        return {"index": index}
    if order in ("uni", "bidi", "cross"):
        return {"order": order, "height": height, "width": width}
    check_tokens(x.shape[1], order, height, width)  # the kernels know a table's visits only
    table = scan_order(order, (height, width), dt_weight.shape[0], x.device)
    return {"index": table.index, "index_covers": table.covers}
