"""Convolution of channels-last maps."""
from torch import Tensor, nn

__all__ = ["Conv2dNHWC"]


class Conv2dNHWC(nn.Conv2d):
    """``nn.Conv2d`` that takes and gives ``[B, H, W, C]``.

    The permuted view is what torch calls the channels_last memory format, so nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)
