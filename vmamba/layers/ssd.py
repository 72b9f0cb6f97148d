"""Mixers of state-space duality (Mamba-2): without an order, and along the walks of a scan order.

Dao and Gu, "Transformers are SSMs", arXiv:2405.21060; Shi et al., "VSSD: Vision Mamba with Non-Causal State Space
Duality", arXiv:2407.18559.
"""
import math
from typing import Any

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)
from vmamba.scans import default_directions, scan_order

from .conv import Conv2dNHWC
from .ssm import reset_ssd_parameters

__all__ = ["SSD2D", "NonCausalSSD"]


class NonCausalSSD(nn.Module):
    """Every token adds to one state of the map, from which every token reads; ``[B, H, W, C] -> [B, H, W, C]``.

    ``S = sum_l m_l B_l x_l^T`` and ``y_l = C_l S + D x_l`` for each head, with the weight of a token
    ``m = softplus(dt + bias) exp(A_log)``; then LayerNorm and a gate without activation. Arxiv:2407.18559, section 3.2.

    Args:
        dim: Channels C.
        num_heads: Heads, which divide ``2 C``; a multiple of ``num_groups``.
        d_state: States N.
        num_groups: Groups of heads that share B and C; head h belongs to group ``h % num_groups``.
        norm_eps: Epsilon of the LayerNorm.
    """

    def __init__(
            self, dim: int, num_heads: int, d_state: int = 64, num_groups: int = 1, norm_eps: float = 1e-5,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.num_groups, self.d_state, self.d_inner = num_heads, num_groups, d_state, 2 * dim
        self.d_conv = self.d_inner + 2 * num_groups * d_state
        self.in_proj = nn.Linear(dim, self.d_inner + self.d_conv + num_heads, bias=False, **dd)
        self.conv = Conv2dNHWC(self.d_conv, self.d_conv, 3, padding=1, groups=self.d_conv, **dd)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(num_heads, **dd))
        self.A_log = nn.Parameter(torch.empty(num_heads, **dd))
        self.D = nn.Parameter(torch.empty(num_heads, **dd))
        self.norm = LayerNorm(self.d_inner, eps=norm_eps, **dd)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise the parameters of the state-space model (its other layers reset themselves)."""
        reset_ssd_parameters(self.A_log, self.D, self.dt_bias)

    def forward(self, x: Tensor) -> Tensor:
        N, H, W, _ = x.shape
        z, x, dt = self.in_proj(x).split([self.d_inner, self.d_conv, self.num_heads], dim=-1)
        x, B, C = self.act(self.conv(x)).split(
            [self.d_inner, self.num_groups * self.d_state, self.num_groups * self.d_state], dim=-1)
        y = torch.ops.vmamba.ssd_scan(
            self._by_group(x.reshape(N, H * W, self.num_heads, -1), 2),
            self._by_group(dt.reshape(N, H * W, self.num_heads), 2), -torch.exp(self._by_group(self.A_log, 0)),
            B.reshape(N, H * W, self.num_groups, self.d_state), C.reshape(N, H * W, self.num_groups, self.d_state),
            self._by_group(self.D, 0), self._by_group(self.dt_bias, 0), True, None, False)[0]
        y = self._from_groups(y).reshape(z.shape)
        return self.out_proj(self.norm(y.to(z.dtype)) * z)

    def _by_group(self, t: Tensor, dim: int) -> Tensor:
        """Heads along ``dim``, those of a group next to each other, as the scan has them."""
        if self.num_groups == 1:
            return t
        return t.unflatten(dim, (-1, self.num_groups)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    def _from_groups(self, y: Tensor) -> Tensor:
        """The inverse along dimension 2."""
        if self.num_groups == 1:
            return y
        return y.unflatten(2, (self.num_groups, -1)).transpose(2, 3).flatten(2, 3)


class SSD2D(nn.Module):
    """Mamba-2's scan of a map in K directions; ``[B, H, W, C] -> [B, H, W, C]``.

    The variant of SS2D that VMamba calls ``m2``: one decay rate and step size for each head of 16 channels, projected
    from the token, B and C of many states; ungated.

    Args:
        dim: Channels C, a multiple of 16.
        d_state: States N.
        scan: Name of the scan order, see :func:`vmamba.scans.list_scans`.
        norm_eps: Epsilon of the LayerNorm over the merged scan.

    Raises:
        ValueError: ``scan`` is not registered or walks copies of the map.
    """

    def __init__(
            self, dim: int, d_state: int = 64, scan: str = "cross", norm_eps: float = 1e-5, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if scan_order(scan, (2, 2)).num_tokens != 4:
            raise ValueError(f"the order {scan!r} walks copies of the map, but SSD2D scans the map itself")
        self.scan, self.directions, self.d_state = scan, default_directions(scan), d_state
        self.num_heads = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.conv = Conv2dNHWC(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.act = nn.GELU()
        self.x_proj = nn.Linear(dim, self.directions * (self.num_heads + 2 * d_state), bias=False, **dd)
        self.dt_bias = nn.Parameter(torch.empty(self.directions, self.num_heads, **dd))
        self.A_log = nn.Parameter(torch.empty(self.directions, self.num_heads, **dd))
        self.D = nn.Parameter(torch.empty(self.directions, dim, **dd))
        self.out_norm = LayerNorm(dim, eps=norm_eps, **dd)
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise the parameters of the state-space model (its other layers reset themselves)."""
        reset_ssd_parameters(self.A_log, self.D, self.dt_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        B, H, W, C = x.shape
        directions, heads = self.directions, self.num_heads
        x = self.act(self.conv(self.in_proj(x))).reshape(B, H * W, C)
        proj = self.x_proj(x).view(B, H * W, directions, heads + 2 * self.d_state)
        steps = torch.ops.vmamba.reorder(x, self.scan, H, W, True)
        dt, Bs, Cs = torch.ops.vmamba.reorder(proj, self.scan, H, W, True).split(
            [heads, self.d_state, self.d_state], dim=-1)
        length = steps.shape[1]
        y = torch.ops.vmamba.ssd_scan(
            steps.view(B, length, directions * heads, C // heads), dt.reshape(B, length, directions * heads),
            -torch.exp(self.A_log.flatten()), Bs, Cs, self.D.view(directions * heads, C // heads),
            self.dt_bias.flatten(), True, None)[0]
        y = torch.ops.vmamba.reorder(y.reshape(B, length, directions, C), self.scan, H, W, False).sum(2)
        return self.out_proj(self.out_norm(y.to(x.dtype))).view(B, H, W, C)
