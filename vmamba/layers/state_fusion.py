"""SS2D whose states are fused with those of their neighbours before they are read out.

Xiao et al., "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion", arXiv:2410.15091,
section 4.2 (structure-aware state fusion, equation 8) and figure 3.
"""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops.conv2d import conv2d

from .plain import is_compiled_for_gpu
from .ss2d import SS2D

__all__ = ["StateFusion", "StateFusionSS2D"]


class StateFusion(nn.Module):
    """Weighted sum of three depthwise 3x3 convolutions of dilations 1, 3 and 5, ``[B, H, W, D] -> [B, H, W, D]``.

    Beyond the border the map is continued by its last row and column (replicate padding), as in the authors' kernels.

    Args:
        dim: Channels D.
    """

    def __init__(self, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.kernel1 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.kernel3 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.kernel5 = nn.Parameter(torch.empty(dim, 1, 3, 3, **dd))
        self.alpha = nn.Parameter(torch.empty(3, **dd))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Kernels as ``nn.Conv2d`` initialises them, uniform within 1 / sqrt(9), and unit weights."""
        for kernel in (self.kernel1, self.kernel3, self.kernel5):
            nn.init.uniform_(kernel, -1 / 3, 1 / 3)
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        # Built of slices rather than by F.pad: its CUDA version returns another memory format than it gets, and its
        # gradient differs from run to run.
        x = torch.cat([x[:, :1].expand(-1, 5, -1, -1), x, x[:, -1:].expand(-1, 5, -1, -1)], dim=1)
        x = torch.cat([x[:, :, :1].expand(-1, -1, 5, -1), x, x[:, :, -1:].expand(-1, -1, 5, -1)], dim=2)
        alpha = self.alpha.to(self.kernel1.dtype)
        y = self._convolve(x[:, 4:H + 6, 4:W + 6], self.kernel1 * alpha[0], 1)
        y = y + self._convolve(x[:, 2:H + 8, 2:W + 8], self.kernel3 * alpha[1], 3)
        return y + self._convolve(x, self.kernel5 * alpha[2], 5)

    def _convolve(self, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            whole = is_compiled_for_gpu(x)
            if whole:   # as in Conv2dNHWC
                return conv2d(x, weight, (1, 1), (0, 0), (dilation, dilation), weight.shape[0])
        return F.conv2d(x.permute(0, 3, 1, 2), weight, dilation=dilation, groups=weight.shape[0]).permute(0, 2, 3, 1)


class StateFusionSS2D(SS2D):
    """Gated scan of the rows with one state per channel, whose states are fused over the map before C reads them out.

    ``y = C fuse(h) + D x``, then LayerNorm, gate and projection; ``[B, H, W, C] -> [B, H, W, C]``.

    Args:
        dim: Channels C.
        ssm_ratio: Inner channels D as a multiple of C.
        norm_eps: Epsilon of the LayerNorm over the scan.
    """

    def __init__(
            self, dim: int, ssm_ratio: float = 2.0, norm_eps: float = 1e-5, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            dim, ssm_ratio=ssm_ratio, conv_bias=True, scan="uni", directions=1, gate=True, norm_eps=norm_eps, **dd)
        self.fusion = StateFusion(self.d_inner, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]`` for any H and W."""
        B, H, W, _ = x.shape
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv(x)
        proj = self.x_proj(x)
        # without C the scan returns the state
        state = torch.ops.vmamba.ss2d_scan(
            x.reshape(B, H * W, self.d_inner), proj[..., :-1].reshape(B, H * W, 1, self.dt_rank + 1), self.dt_weight,
            self.dt_bias, self.A_log, None, self.scan, H, W, None, True)[0]
        fused = self.fusion(state.to(x.dtype).view(B, H, W, self.d_inner))
        y = fused * proj[..., -1:] + x * self.D.to(x.dtype)
        return self.out_proj(self.out_norm(y) * F.silu(z))
