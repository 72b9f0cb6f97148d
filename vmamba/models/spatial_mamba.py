"""Spatial-Mamba: hierarchical backbones whose one scan is followed by a fusion of neighbouring states.

Paper: Xiao et al., "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
arXiv:2410.15091.
Origin of the weights: https://github.com/EdwardChasel/Spatial-Mamba (Apache-2.0). This implementation is our own.

The fusion continues the map beyond its border by the last row and column, in training as in inference; the authors'
merged inference kernel equals that. Maps are channels-last throughout and any image size works.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import DepthwiseConvAdd, InvertedDownsample, LayerNorm, Mlp, ResidualStem, StateFusionSS2D

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["SpatialMamba"]

NORM_EPS = 1e-5


class SpatialMambaBlock(nn.Module):
    """Scan with state fusion, then an MLP, each after a convolution that encodes positions.

    Arxiv:2410.15091, figure 3; ``[B, H, W, C] -> [B, H, W, C]``.
    """

    def __init__(self, dim: int, drop_path: float, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.cpe1 = DepthwiseConvAdd(dim, **dd)
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = StateFusionSS2D(dim, norm_eps=NORM_EPS, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.cpe2 = DepthwiseConvAdd(dim, **dd)
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        x = self.cpe2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class SpatialMamba(HierarchicalBackbone):
    """Spatial-Mamba classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``, as the authors' recipe does.
    """

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (64, 128, 256, 512),
            depths: tuple[int, ...] = (2, 4, 8, 4),
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = [
            Stage(
                InvertedDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity(),
                [SpatialMambaBlock(dims[i], rate, **dd) for rate in rates])
            for i, rates in enumerate(drop_path_rates(drop_path_rate, depths))]
        super().__init__(
            ResidualStem(in_chans, dims[0], **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^patch_embed\.", "stem."),
    (r"\.ln_2\.", ".norm2."),
    (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
    (r"\.downsample\.conv\.1\.conv\.", ".downsample.depthwise."),
    (r"\.downsample\.conv\.2\.", ".downsample.project."),
    (r"\.state_fusion\.kernel_3$", ".fusion.kernel1"),
    (r"\.state_fusion\.kernel_3_1$", ".fusion.kernel3"),
    (r"\.state_fusion\.kernel_3_2$", ".fusion.kernel5"),
    (r"\.state_fusion\.", ".fusion."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return vmamba_native_name(key, patch_stem=False)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official Spatial-Mamba checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    return fit_official(state_dict, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.conv1.conv",
        "paper_name": "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion",
        "paper_ids": "arXiv:2410.15091",
        **kwargs})


def _published(top1: float) -> dict[str, Any]:
    """The authors publish the weights on a drive that gives files to browsers only, linked from their repository."""
    return _cfg(top1=top1, origin_url="https://github.com/EdwardChasel/Spatial-Mamba")


default_cfgs = generate_default_cfgs({
    "spatial_mamba_tiny.in1k": _published(83.5),
    "spatial_mamba_small.in1k": _published(84.6),
    "spatial_mamba_base.in1k": _published(85.3),
    "test_spatial_mamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> SpatialMamba:
    return build_hierarchical(SpatialMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def spatial_mamba_tiny(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-T: 26.7 M parameters, 83.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (2, 4, 8, 4)}
    return _create("spatial_mamba_tiny", pretrained, model_args, **kwargs)


@register_model
def spatial_mamba_small(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-S: 43.1 M parameters, 84.6 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (2, 4, 21, 5)}
    return _create("spatial_mamba_small", pretrained, model_args, **kwargs)


@register_model
def spatial_mamba_base(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-B: 95.7 M parameters, 85.3 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 4, 21, 5)}
    return _create("spatial_mamba_base", pretrained, model_args, **kwargs)


@register_model
def test_spatial_mamba(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:  # noqa: PT028  (a model, not a test)
    """A minimal Spatial-Mamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}
    return _create("test_spatial_mamba", pretrained, model_args, **kwargs)
