"""``ReferenceOperators``: whole models on plain differentiable torch, so that their gradients can be differentiated."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from vmamba.scans import ScanOrder, scan_order

from . import _torch_neighborhood
from ._shapes import compute_dtype
from .depthwise_conv_silu import depthwise_conv
from .reference import selective_scan_reference, ss2d_scan_norm_reference, ss2d_scan_reference
from .ss2d_mixer import KEPT
from .ssd_scan import ssd_scan_reference

__all__ = ["ReferenceOperators", "call_order", "operator_name"]


class ReferenceOperators(TorchFunctionMode):
    """Within it, calls of the suite's operators run as plain torch, the scans step by step by their references.

    The operators' own backwards cannot be differentiated; what runs in their place can, any number of times, and so can
    attention inside. For what needs gradients of gradients::

        with ReferenceOperators():
            score = model(images)[:, 3].sum()
        (saliency,) = torch.autograd.grad(score, images, create_graph=True)

    It takes as many steps in Python as the scan has. It is for eager mode, and leaves graphs that were compiled or
    exported before as they are.

    Attributes:
        enabled: Whether it acts at the moment; a hook may switch it on for the last layers only.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled

    def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self.enabled:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:  # its fused kernels cannot be differentiated twice either
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return _PLAIN.get(operator_name(func), func)(*args, **kwargs)


def operator_name(func: Any) -> str:
    """Qualified name of one of PyTorch's operators, such as ``"vmamba::ss2d_scan"``; "" for another function."""
    if isinstance(func, torch._ops.OpOverload):
        return func._schema.name
    return func._qualified_op_name if isinstance(func, torch._ops.OpOverloadPacket) else ""


def call_order(x: Tensor, A_log: Tensor, order: str, height: int, width: int, index: Tensor | None) -> ScanOrder:
    """The order that a call of ``ss2d_scan`` names by its name and size or by its table."""
    if index is not None:
        return ScanOrder("custom", (height, width), index, x.shape[1])
    return scan_order(order, (height, width), A_log.shape[0], x.device)


def _ss2d_scan(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, merge: bool, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    walks = call_order(x, A_log, order, height, width, index)
    return ss2d_scan_reference(x, proj, dt_weight, dt_bias, A_log, D_skip, walks, merge), x.new_empty(0)


def _ss2d_scan_norm(
        x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None,
        order: str, height: int, width: int, index: Tensor | None, norm_weight: Tensor, norm_bias: Tensor,
        gate: Tensor | None, eps: float = 1e-5, backend: str = "auto",
) -> Tensor:
    walks = call_order(x, A_log, order, height, width, index)
    return ss2d_scan_norm_reference(
        x, proj, dt_weight, dt_bias, A_log, D_skip, walks, norm_weight, norm_bias, gate, eps)


def _ss2d_scan_norm_saving(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, _ = arguments
    y = _ss2d_scan_norm(*given)
    return y, y.new_empty(0), y.new_empty(0)


def _selective_scan(
        u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
        delta_bias: Tensor | None, delta_softplus: bool, initial_state: Tensor | None, backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, last = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return y, last, u.new_empty(0), u.new_empty(0)


def _add_layer_norm(
        x: Tensor, branch: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor, eps: float = 1e-5,
        backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x
    if branch is not None:
        factor = 1.0 if scale is None else scale.view(-1, *(1,) * (x.ndim - 1))
        total = x + (factor * branch).to(x.dtype)
    dtype = compute_dtype(x)
    y = F.layer_norm(total.to(dtype), weight.shape, weight.to(dtype), bias.to(dtype), eps).to(x.dtype)
    return total, y, x.new_empty(0), x.new_empty(0)


def _depthwise_conv_silu(
        x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto") -> tuple[Tensor, Tensor]:
    return F.silu(depthwise_conv(x, weight, bias)), x.new_empty(0)


def _depthwise_conv_add(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str = "auto") -> Tensor:
    return x + depthwise_conv(x, weight, bias)


def _ss2d_mixer(
        x: Tensor, in_weight: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, proj_weight: Tensor,
        dt_weight: Tensor, dt_bias: Tensor | None, A_log: Tensor, D_skip: Tensor | None, norm_weight: Tensor,
        norm_bias: Tensor, out_weight: Tensor, order: str, eps: float, backend: str, save: bool,
) -> tuple[Tensor, ...]:
    batch, height, width, _ = x.shape
    inner = F.linear(x, in_weight.to(x.dtype))
    tokens = F.silu(depthwise_conv(inner, conv_weight, conv_bias)).flatten(1, 2)
    proj = F.linear(tokens, proj_weight.to(x.dtype)).view(batch, height * width, dt_weight.shape[0], -1)
    y = _ss2d_scan_norm(
        tokens, proj, dt_weight, dt_bias, A_log, D_skip, order, height, width, None, norm_weight, norm_bias, None, eps)
    y = F.linear(y, out_weight.to(x.dtype)).view(batch, height, width, -1)
    return y, *(x.new_empty(0) for _ in KEPT)


def _mlp(
        x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, backend: str = "auto",
) -> tuple[Tensor, ...]:
    weight1, bias1, weight2, bias2 = (t.to(x.dtype) for t in (weight1, bias1, weight2, bias2))
    return F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2), *(x.new_empty(0) for _ in range(4))


def _ssd_scan(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, dt_bias: Tensor | None,
        dt_softplus: bool, initial_state: Tensor | None, causal: bool = True, backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    return ssd_scan_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal)


def _neighborhood_weights(
        q: Tensor, k: Tensor, bias: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    return _torch_neighborhood.weights_forward(q, k, bias, window, dilated)


def _neighborhood_apply(weights: Tensor, v: Tensor, window: int, dilated: bool, backend: str = "auto") -> Tensor:
    return _torch_neighborhood.apply_forward(weights, v, window, dilated)


# reorder and arrivals are not here: they can be differentiated twice as they are
_PLAIN: dict[str, Callable] = {
    "vmamba::ss2d_scan": _ss2d_scan,
    "vmamba::ss2d_scan_norm": _ss2d_scan_norm,
    "vmamba::ss2d_scan_norm_saving": _ss2d_scan_norm_saving,
    "vmamba::selective_scan": _selective_scan,
    "vmamba::add_layer_norm": _add_layer_norm,
    "vmamba::depthwise_conv_add": _depthwise_conv_add,
    "vmamba::depthwise_conv_silu": _depthwise_conv_silu,
    "vmamba::ss2d_mixer": _ss2d_mixer,
    "vmamba::mlp": _mlp,
    "vmamba::ssd_scan": _ssd_scan,
    "vmamba::neighborhood_weights": _neighborhood_weights,
    "vmamba::neighborhood_apply": _neighborhood_apply,
}
