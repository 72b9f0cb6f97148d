"""Convolutions of channels-last maps."""
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops import depthwise_conv_add
from vmamba.ops.conv2d import conv2d
from vmamba.ops.depthwise_conv_silu import depthwise_conv_silu_call

from .plain import is_compiled_for_gpu, runs_alone_on_gpu

__all__ = ["Conv2dNHWC", "ConvNorm", "DepthwiseConvAdd", "DepthwiseConvSiLU"]


class Conv2dNHWC(nn.Conv2d):
    """``nn.Conv2d`` that takes and gives ``[B, H, W, C]``.

    The permuted view is what torch calls the channels_last memory format, so nothing is copied. A kernel of one pixel
    runs as a linear layer: such a weight has both memory formats at once, and a compiler may transpose the map.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1:
            return F.linear(x, self.weight.flatten(1), self.bias)
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution, by whatever means."""
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            whole = is_compiled_for_gpu(x)
            if whole:   # lest the compiler lay out all maps anew, see vmamba.ops.conv2d
                padding = cast("tuple[int, int]", self.padding)
                y = conv2d(x, self.weight, self.stride, padding, self.dilation, self.groups)
                return y + self.bias.to(y.dtype) if self.bias is not None else y
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)


class DepthwiseConvSiLU(Conv2dNHWC):
    """Depthwise convolution that keeps the size of the map, and SiLU; ``[B, H, W, C] -> [B, H, W, C]``.

    Args:
        dim: Channels C.
        kernel_size: Odd size of the kernel; 3 runs as one operator.
        bias: Whether the convolution has a bias.
    """

    def __init__(
            self, dim: int, kernel_size: int = 3, bias: bool = True, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (3, 3):
            if torch.jit.is_scripting():
                return torch.ops.vmamba.depthwise_conv_silu(x, self.weight, self.bias)[0]
            return depthwise_conv_silu_call(x, self.weight, self.bias, "auto")[0]
        return F.silu(self.convolve(x))


class DepthwiseConvAdd(Conv2dNHWC):
    """A map and its 3x3 depthwise convolution, added; ``[B, H, W, C] -> [B, H, W, C]``.

    A conditional position encoding, Chu et al., arXiv:2102.10882. On a GPU it is one operator.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            fused = runs_alone_on_gpu(x)
            if fused:
                return depthwise_conv_add(x, self.weight, self.bias)
        return x + self.convolve(x)


class ConvNorm(nn.Module):
    """Convolution, batch norm and, where given, activation: ``[B, H, W, C] -> [B, ceil(H / s), ceil(W / s), C_out]``.

    Args:
        in_chans: Channels C.
        out_chans: Channels C_out.
        kernel_size: Odd size of the kernel; the map is padded with zeros to keep its size.
        stride: Stride s.
        groups: Groups of the convolution.
        bias: Whether the convolution has a bias.
        act: Class of the activation; None for none.
    """

    def __init__(
            self, in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, groups: int = 1,
            bias: bool = False, act: type[nn.Module] | None = None, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = Conv2dNHWC(
            in_chans, out_chans, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=bias, **dd)
        # The statistics are over tokens.  As a norm of [tokens, C], exported graphs take any image size; torch cannot
        # order the strides of the permuted [B, C, H, W] where sizes are symbols.
        self.norm = nn.BatchNorm1d(out_chans, **dd)
        self.act = act() if act is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(self.norm(x.flatten(0, 2)).view(x.shape))
