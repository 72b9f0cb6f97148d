"""A feature pyramid for plain backbones, whose maps all have one stride."""
from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SimpleFeaturePyramid"]

LEVELS = 4


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps at strides 4, 8, 16 and 32 (and 64) from a plain backbone of stride 16.

    Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022, arXiv:2203.16527,
    section 3: transposed convolutions or pooling bring the map to each stride, a 1x1 and a 3x3 convolution with
    LayerNorms to the width of the heads.

    Args:
        in_channels: Channels of the backbone's maps.
        out_channels: Channels of the pyramid.
        num_outs: Maps to return: 4, or 5 with one of stride 64 subsampled from the last, as FPN has it for detection.

    Raises:
        ValueError: ``num_outs`` is neither 4 nor 5.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, num_outs: int = 4) -> None:
        super().__init__()
        if num_outs not in (LEVELS, LEVELS + 1):
            raise ValueError(f"num_outs is {num_outs}, but needs {LEVELS} or {LEVELS + 1}")
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        self.resample = nn.ModuleList([
            nn.Sequential(
                nn.ConvTranspose2d(in_channels, half, 2, stride=2), LayerNorm2d(half), nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, stride=2)),
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            nn.Identity(),
            nn.MaxPool2d(2),
        ])
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_channels, 1, bias=False), LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels))
            for width in (quarter, half, in_channels, in_channels))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone -> pyramid, contiguous, finest first.

        Args:
            inputs: One map [B, in_channels, H, W], the source of every level, or four, one for each.

        Raises:
            ValueError: Neither one map nor four.
        """
        if len(inputs) not in (1, LEVELS):
            raise ValueError(f"SimpleFeaturePyramid got {len(inputs)} maps, but needs 1 or {LEVELS}: set the "
                             "backbone's out_indices to one or four of its blocks")
        maps = inputs if len(inputs) == LEVELS else [inputs[0]] * LEVELS
        outs = [project(resample(x)).contiguous()
                for x, resample, project in zip(maps, self.resample, self.project, strict=True)]
        if self.num_outs > LEVELS:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
