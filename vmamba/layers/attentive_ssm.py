"""A2Mamba's mixers: neighbourhood attention that also mixes the hidden states of a scan, and global attention.

Lou et al., "A2Mamba: Attention-augmented State Space Models for Visual Recognition", arXiv:2507.16624.
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)

from . import rotary
from .conv import Conv2dNHWC, ConvNorm
from .plain import is_plain, runs_alone_on_gpu
from .ssm import reset_ssm_parameters

__all__ = ["AttentiveGlobal", "AttentiveSSM"]

NORM_EPS = 1e-6
BIAS_SIDE = 49  # tokens of the map for which the global bias is learned


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, H, W, C] -> [B, H, W, n, C / n]``."""
    return x.unflatten(-1, (num_heads, -1))


def _sequences(x: Tensor) -> Tensor:
    """``[B, H, W, n, C / n] -> [B, n, H * W, C / n]``, as torch's attention has it."""
    return x.flatten(1, 2).transpose(1, 2)


class AttentionSSM(nn.Module):
    """Scan of the rows with one state per channel; attention mixes the states, then C reads them out.

    Args:
        dim: Channels C.
        num_heads: Heads n of the attention, an even number.
        window: Side K of the attention's windows.
    """

    def __init__(
            self, dim: int, num_heads: int, window: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.window, self.dt_rank = num_heads, window, math.ceil(dim / 16)
        self.conv = Conv2dNHWC(dim, dim, 5, padding=2, groups=dim, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(dim, self.dt_rank + 2, bias=False, **dd)
        self.dt_weight = nn.Parameter(torch.empty(dim, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(dim, **dd))
        self.A_log = nn.Parameter(torch.empty(dim, 1, **dd))
        self.D = nn.Parameter(torch.empty(dim, **dd))
        self.fusion = nn.Linear(num_heads, num_heads, **dd)
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise the parameters of the state-space model (its other layers reset themselves)."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)

    def _project(self, x: Tensor) -> Tensor:
        """Factors of delta, B and C, ``[B, H, W, C] -> [B, H, W, R + 2]``."""
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            fast = runs_alone_on_gpu(x) and is_plain(self.x_proj, nn.Linear)
            if fast:    # rows of 16 bytes or a multiple of it: for others there is no fast matrix product
                weight = self.x_proj.weight
                return F.linear(x, F.pad(weight, (0, 0, 0, -len(weight) % 8)))[..., :len(weight)]
        return self.x_proj(x)

    def _fuse(self, x: Tensor) -> Tensor:
        """Mixes the heads, ``[B, H, W, n, C / n] -> [B, H, W, C]``."""
        if not torch.jit.is_scripting():
            fast = runs_alone_on_gpu(x) and is_plain(self.fusion, nn.Linear)
            if fast:
                # n columns leave tensor cores idle and need the heads last; with a row for each channel they are where
                # they should be, and the zeros cost nothing
                weight, each = self.fusion.weight, x.shape[-1]
                spread = torch.kron(weight, torch.eye(each, device=x.device, dtype=weight.dtype))
                return F.linear(x.flatten(3), spread, self.fusion.bias.repeat_interleave(each))
        # channels first: when an axis behind the width is split off, tracing cannot tell that what is left is the width
        return self.fusion(x.permute(4, 0, 1, 2, 3)).permute(1, 2, 3, 4, 0).flatten(3)

    def forward(self, x: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``, with the weights [B, H, W, n / 2, K * K] of both halves of the heads."""
        B, H, W, C = x.shape
        x = self.act(self.conv(x))
        proj = self._project(x)
        # without C the scan returns the state
        state = torch.ops.vmamba.ss2d_scan(
            x.reshape(B, H * W, C), proj[..., :-1].reshape(B, H * W, 1, self.dt_rank + 1), self.dt_weight.unsqueeze(0),
            self.dt_bias.unsqueeze(0), self.A_log.unsqueeze(0), None, "uni", H, W, None, True)[0]
        first, second = _heads(state.to(x.dtype).view(B, H, W, C), self.num_heads).chunk(2, dim=3)
        mixed = torch.cat([
            torch.ops.vmamba.neighborhood_apply(near, first, self.window, False),
            torch.ops.vmamba.neighborhood_apply(far, second, self.window, True)], dim=3)
        return rotary.widen(self._fuse(mixed)) * proj[..., -1:] + x * self.D


class AttentiveMixer(nn.Module):
    """Neighbourhood attention, near for half of the heads and dilated, on top of the first's output, for the other.

    ``[B, H, W, C] -> [B, H, W, C]``. What follows on it is :meth:`refine`; then a local position encoding, a norm and a
    gate. Arxiv:2507.16624, section 3.2.

    Args:
        dim: Channels C.
        num_heads: Heads n, an even number; C / n is a multiple of 4.
        window: Side K of the windows, an odd number.
    """

    def __init__(
            self, dim: int, num_heads: int, window: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_heads, self.window, self.head_dim = num_heads, window, dim // num_heads
        self.gate = ConvNorm(dim, dim, 1, bias=True, act=nn.SiLU, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = Conv2dNHWC(dim, dim, 5, padding=2, groups=dim, **dd)
        # one table for both halves of the heads
        self.bias = nn.Parameter(torch.zeros(num_heads // 2, 2 * window - 1, 2 * window - 1, **dd))
        self.norm = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.proj_norm = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """No bias at first."""
        nn.init.zeros_(self.bias)

    def refine(self, x: Tensor, q: Tensor, k: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """What becomes of the attended values ``x`` [B, H, W, C]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        gate = self.gate(x)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        lepe = self.lepe(v)
        cos, sin = rotary.axial_angles(x, H, W, self.head_dim, True)
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)  # the same for all heads
        q = (rotary.rotate(_heads(q, self.num_heads), cos, sin) * self.head_dim ** -0.5).to(v.dtype)
        k = rotary.rotate(_heads(k, self.num_heads), cos, sin).to(v.dtype)
        (q1, q2), (k1, k2) = q.chunk(2, dim=3), k.chunk(2, dim=3)
        v1, v2 = _heads(v, self.num_heads).chunk(2, dim=3)
        near = torch.ops.vmamba.neighborhood_weights(q1, k1, self.bias, self.window, False)
        far = torch.ops.vmamba.neighborhood_weights(q2, k2, self.bias, self.window, True)
        first = torch.ops.vmamba.neighborhood_apply(near, v1, self.window, False)
        second = torch.ops.vmamba.neighborhood_apply(far, first + v2, self.window, True)
        y = self.refine(torch.cat([first, second], dim=3).flatten(3), q, k, near, far)
        y = (rotary.widen(self.norm(y.to(x.dtype))) + lepe) * gate
        return self.proj(self.proj_norm(y.to(x.dtype)))


class AttentiveSSM(AttentiveMixer):
    """Attention and a scan whose hidden states go through the same attention ("MASS"); ``[B, H, W, C]`` both ways.

    Arguments as of :class:`AttentiveMixer`.
    """

    def __init__(
            self, dim: int, num_heads: int, window: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, window, **dd)
        self.ssm = AttentionSSM(dim, num_heads, window, **dd)

    def refine(self, x: Tensor, q: Tensor, k: Tensor, near: Tensor, far: Tensor) -> Tensor:
        return self.ssm(x, near, far)


class AttentiveGlobal(AttentiveMixer):
    """Attention in windows, then among all positions with the same queries and keys; ``[B, H, W, C]`` both ways.

    The learned bias between all pairs of positions is for 7 x 7 maps, and resized by bicubic interpolation for others.
    Arguments as of :class:`AttentiveMixer`.
    """

    def __init__(
            self, dim: int, num_heads: int, window: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, num_heads, window, **dd)
        self.global_bias = nn.Parameter(torch.zeros(1, num_heads, BIAS_SIDE, BIAS_SIDE, **dd))

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """No bias at first."""
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.global_bias)

    def refine(self, x: Tensor, q: Tensor, k: Tensor, near: Tensor, far: Tensor) -> Tensor:
        _, H, W, _ = x.shape
        bias = F.interpolate(self.global_bias, size=(H * W, H * W), mode="bicubic", align_corners=False)
        y = F.scaled_dot_product_attention(
            _sequences(q), _sequences(k), _sequences(_heads(x, self.num_heads)), attn_mask=bias.to(x.dtype), scale=1.0)
        return y.transpose(1, 2).reshape(x.shape)
