"""The ablations of SS2D that the authors of VMamba published: other output norms, other gates, a cascaded scan.

Liu et al., "VMamba: Visual State Space Model", arXiv:2401.10166, and its code; no released model uses them.
"""
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_act_layer
from torch import Tensor, nn

from .out_norm import create_out_norm
from .ss2d import SS2D

__all__ = ["SS2DVariant"]


class SS2DVariant(SS2D):
    """SS2D with another output norm, gate or output activation, or with the cascaded scan.

    Args:
        dim: Channels C of input and output.
        scan: Name of the scan order, or "cascade": rows both ways, then columns both ways on the result.
        directions: Number of directions K; None for the order's own.
        gate_act: Activation of the multiplicative branch ("silu", or "identity" for a plain product); None for no
            branch.
        out_norm: Name in :data:`vmamba.layers.out_norm.OUT_NORMS`.
        out_act: Activation after the output norm; None for none.
        norm_eps: Epsilon of the LayerNorms.
        ss2d: Further arguments of :class:`SS2D`.
    """

    def __init__(
            self, dim: int, scan: str = "cross", directions: int | None = None, gate_act: str | None = None,
            out_norm: str = "layernorm", out_act: str | None = None, norm_eps: float = 1e-5, device: Any = None,
            dtype: torch.dtype | None = None, **ss2d: Any,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        order, directions = ("cross", 4) if scan == "cascade" else (scan, directions)
        super().__init__(
            dim, scan=order, directions=directions, gate=gate_act is not None, norm_eps=norm_eps, **ss2d, **dd)
        self.cascade = scan == "cascade"
        self.gate_act = get_act_layer(gate_act)() if gate_act is not None else nn.Identity()
        self.out_norm = create_out_norm(out_norm, self.d_inner, norm_eps, **dd)
        self.out_act = get_act_layer(out_act)() if out_act is not None else nn.Identity()

    def _cascade(self, x: Tensor) -> Tensor:
        """Scan each row on its own in both directions, then each column of the result; ``[B, H, W, D]`` both ways.

        As in the authors' code: each pass is preceded by a LayerNorm without parameters, and the reversed direction
        is added in the order of its walk, not of the line.
        """
        for column in (False, True):
            x = F.layer_norm(x, (self.d_inner,), None, None, self.norm_eps)
            if column:
                x = x.transpose(1, 2)
            k = 2 if column else 0
            B, S, T, D = x.shape
            lines = x.reshape(B * S, T, D)
            weight = self.x_proj.weight.view(4, self.dt_rank + 2 * self.d_state, D)[k:k + 2].flatten(0, 1)
            proj = F.linear(lines, weight).view(B * S, T, 2, self.dt_rank + 2 * self.d_state)
            y = torch.ops.vmamba.ss2d_scan(
                lines, proj, self.dt_weight[k:k + 2], self.dt_bias[k:k + 2], self.A_log[k:k + 2], self.D[k:k + 2],
                "bidi", 1, T, None, False)[0]
            x = (y[:, 0] + y[:, 1].flip(1)).view(B, S, T, D)
            if column:
                x = x.transpose(1, 2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        B, H, W, _ = x.shape
        x = self.in_proj(x)
        z = x
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        x = self.conv(x)
        if self.cascade:
            y = self._cascade(x)
        else:
            tokens = x.reshape(B, H * W, self.d_inner)
            proj = self.x_proj(tokens).view(B, H * W, self.directions, self.dt_rank + 2 * self.d_state)
            y = torch.ops.vmamba.ss2d_scan(
                tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, self.scan, H, W, None, True,
            )[0].view(B, H, W, self.d_inner)
        y = self.out_act(self.out_norm(y).to(x.dtype))
        if self.gated:
            y = y * self.gate_act(z)
        return self.out_proj(y)
