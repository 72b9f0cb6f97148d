"""MSVMamba: hierarchical backbones that scan the full map once and a half-resolution map three times.

Paper: Shi et al., "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model", NeurIPS 2024,
arXiv:2405.14174.
Origin of the weights: https://github.com/YuHengsss/MSVMamba (no licence stated: look at their terms before use). This
implementation is our own, written from the paper.

``v3`` are the authors' later models on the trunk of VMamba's second release: overlapping stem, convolutions between
stages, a narrower scan and a wider feed-forward network. Maps are channels-last throughout and any image size works.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import (
    ConvDownsample,
    ConvStem,
    DepthwiseConvAdd,
    LayerNorm,
    MultiScaleSS2D,
    PatchMerging,
    PatchStem,
)

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["MSVMamba"]

NORM_EPS = 1e-5


class ConvFFN(nn.Module):
    """Feed-forward network with a residual depthwise 3x3 convolution of the hidden map, ``[B, H, W, C]`` both ways."""

    def __init__(self, dim: int, hidden: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.conv = DepthwiseConvAdd(hidden, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.conv(self.fc1(x))))


class MSVMambaBlock(nn.Module):
    """Multi-scale scan, then a convolutional feed-forward network; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(
            self, dim: int, mlp_ratio: float, drop_path: float, ssm: Mapping[str, Any], device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = MultiScaleSS2D(dim, norm_eps=NORM_EPS, **ssm, **dd)
        self.drop_path1 = drop_path
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = ConvFFN(dim, int(dim * mlp_ratio), **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.norm2.add(x, self.mixer(self.norm1(x)), self.drop_path1)
        return x + self.drop_path2(self.mlp(y))


class MSVMamba(HierarchicalBackbone):
    """MSVMamba classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        ssm_ratio: Inner channels of the scan as a multiple of the block's.
        mlp_ratio: Hidden channels of the feed-forward network as a multiple of the block's.
        conv_bias: Bias of the scan's depthwise convolutions.
        gate: Multiply the scan by ``silu(z)``, z a second branch.
        patch_stem: Stem and downsampling of VMamba's first release (4x4 patches, patch merging) instead of
            convolutions.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``, as the authors' recipe does.
    """

    default_init = (".x_proj", ".mlp.fc1", ".mlp.fc2")

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (96, 192, 384, 768),
            depths: tuple[int, ...] = (1, 2, 9, 2),
            ssm_ratio: float = 2.0,
            mlp_ratio: float = 2.0,
            conv_bias: bool = True,
            gate: bool = True,
            patch_stem: bool = True,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        ssm = {"ssm_ratio": ssm_ratio, "conv_bias": conv_bias, "gate": gate}
        downsample = PatchMerging if patch_stem else ConvDownsample
        stages = [
            Stage(
                downsample(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity(),
                [MSVMambaBlock(dims[i], mlp_ratio, rate, ssm, **dd) for rate in rates])
            for i, rates in enumerate(drop_path_rates(drop_path_rate, depths))]
        stem = (PatchStem if patch_stem else ConvStem)(in_chans, dims[0], NORM_EPS, **dd)
        super().__init__(
            stem, stages, dims, in_chans, num_classes, global_pool, drop_rate, NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"\.op\.conv2d_b1\.", ".op.half_conv."),
    (r"\.op\.se\.fc\.0\.", ".op.se.reduce."),
    (r"\.op\.se\.fc\.2\.", ".op.se.expand."),
    (r"\.convFFN\.linear(1|2)\.", r".mlp.fc\1."),
    (r"\.convFFN\.dwc\.", ".mlp.conv."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official MSVMamba checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    patch_stem = isinstance(model.stem, PatchStem)

    def native_name(key: str) -> str:
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        return vmamba_native_name(key, patch_stem)

    return fit_official(state_dict, model, native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "paper_name": "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
        "paper_ids": "arXiv:2405.14174",
        **kwargs})


def _published(top1: float, file: str = "", **kwargs: Any) -> dict[str, Any]:
    """The first models lie on a drive that gives files to browsers only, linked from the authors' repository."""
    url = f"https://huggingface.co/YuhengSSS/MSVMamba/resolve/main/{file}" if file else ""
    return _cfg(
        top1=top1, url=url, custom_load=bool(file), license="other", origin_url="https://github.com/YuHengsss/MSVMamba",
        **kwargs)


default_cfgs = generate_default_cfgs({
    "msvmamba_nano.in1k": _published(77.3),
    "msvmamba_micro.in1k": _published(79.8),
    "msvmamba_tiny.in1k": _published(82.8),
    "msvmamba_v3_tiny.in1k": _published(83.0, "msvmambav3_tiny_224.pth", first_conv="stem.conv1"),
    "msvmamba_v3_small.in1k": _published(84.1, "msvmambav3_small_224.pth", first_conv="stem.conv1"),
    "msvmamba_v3_base.in1k": _published(84.4, "msvmambav3_base_224.pth", first_conv="stem.conv1"),
    "test_msvmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> MSVMamba:
    return build_hierarchical(MSVMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


_V3 = {"ssm_ratio": 1.0, "mlp_ratio": 4.0, "conv_bias": False, "gate": False, "patch_stem": False}


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-N: 6.9 M parameters, 77.3 % ImageNet-1K top-1 (published)."""
    return _create("msvmamba_nano", pretrained, {"dims": doubling(48), "depths": (1, 2, 5, 2)}, **kwargs)


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-M: 11.9 M parameters, 79.8 % ImageNet-1K top-1 (published)."""
    return _create("msvmamba_micro", pretrained, {"dims": doubling(64), "depths": (1, 2, 5, 2)}, **kwargs)


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T: 33.0 M parameters, 82.8 % ImageNet-1K top-1 (published)."""
    return _create("msvmamba_tiny", pretrained, {"dims": doubling(96), "depths": (1, 2, 9, 2)}, **kwargs)


@register_model
def msvmamba_v3_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T on VMamba's second trunk: 32.3 M parameters, 83.0 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 9, 2), **_V3}
    return _create("msvmamba_v3_tiny", pretrained, model_args, **kwargs)


@register_model
def msvmamba_v3_small(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-S on VMamba's second trunk: 50.2 M parameters, 84.1 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 3, 20, 2), **_V3}
    return _create("msvmamba_v3_small", pretrained, model_args, **kwargs)


@register_model
def msvmamba_v3_base(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-B on VMamba's second trunk, gated: 90.6 M parameters, 84.4 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(128), "depths": (2, 4, 18, 2), **_V3, "gate": True}
    return _create("msvmamba_v3_base", pretrained, model_args, **kwargs)


@register_model
def test_msvmamba(pretrained: bool = False, **kwargs: Any) -> MSVMamba:  # noqa: PT028  (a model, not a test)
    """A minimal MSVMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}
    return _create("test_msvmamba", pretrained, model_args, **kwargs)
