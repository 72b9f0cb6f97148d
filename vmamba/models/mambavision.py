"""MambaVision: convolutions at high resolution, then windows of half-scanned and attended tokens.

Paper: Hatamizadeh and Kautz, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", CVPR 2025, arXiv:2407.08083.
Origin of the weights: https://github.com/NVlabs/MambaVision (code for non-commercial use, weights CC-BY-NC-SA-4.0).
This implementation is our own, written from the paper and a description.

In each stage of windows the first half of the blocks scans and the second attends. Maps that windows do not divide are
padded with zeros for the whole stage, so any image size works; maps are channels-last.
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import Attention, DropPath, GELUTanh
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import Conv2dNHWC, ConvNorm, MixerBlock, SplitMixer, from_windows, to_windows

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released, open_envelope
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates

__all__ = ["MambaVision"]

NORM_EPS = 1e-5
STEM_NORM_EPS = 1e-4


class MambaVisionStem(nn.Module):
    """Two 3x3 convolutions of stride 2: ``[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]``."""

    def __init__(
            self, in_chans: int, hidden: int, dim: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNorm(in_chans, hidden, 3, stride=2, act=nn.ReLU, **dd)
        self.conv2 = ConvNorm(hidden, dim, 3, stride=2, act=nn.ReLU, **dd)
        self.conv1.norm.eps = self.conv2.norm.eps = STEM_NORM_EPS

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(self, dim: int, drop_path: float, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNorm(dim, dim, 3, bias=True, act=GELUTanh, **dd)
        self.conv2 = ConvNorm(dim, dim, 3, bias=True, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.conv2(self.conv1(x)))


class WindowStage(Stage):
    """Downsampling, then blocks inside windows; ``[B, H, W, C] -> [B, H', W', C]``.

    Args:
        downsample: Halves the map.
        blocks: Blocks on tokens.
        window: Side of the windows.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], window: int) -> None:
        super().__init__(downsample, blocks)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        B, H, W, _ = x.shape
        return from_windows(self.run_blocks(to_windows(x, self.window)), self.window, B, H, W)


class MapBatchNorm(nn.Module):
    """Batch norm of a channels-last map, ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(self, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, eps=NORM_EPS, device=device, dtype=dtype)  # over tokens, as in ConvNorm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 2)).view(x.shape)


class MambaVision(HierarchicalBackbone):
    """MambaVision classifier and backbone: two stages of convolutions, two of windows.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        stem_dim: Channels between the stem's convolutions.
        depths: Blocks of the four stages.
        num_heads: Heads of the attention in the last two stages.
        windows: Sides of the windows in the last two stages, in tokens.
        mlp_ratio: Hidden channels of the MLP as a multiple of the block's.
        layer_scale: Initial scale of the branches; None for none.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``, as the authors' recipe does.
    """

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (80, 160, 320, 640),
            stem_dim: int = 32,
            depths: tuple[int, ...] = (1, 3, 8, 4),
            num_heads: tuple[int, int] = (8, 16),
            windows: tuple[int, int] = (14, 7),
            mlp_ratio: float = 4.0,
            layer_scale: float | None = None,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages: list[Stage] = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim = dims[i]
            downsample = Conv2dNHWC(
                dims[i - 1], dim, 3, stride=2, padding=1, bias=False, **dd) if i > 0 else nn.Identity()
            if i < 2:
                stages.append(Stage(downsample, [ConvBlock(dim, rate, **dd) for rate in rates]))
                continue
            scans = (len(rates) + 1) // 2
            mixers = [
                SplitMixer(dim, **dd) if j < scans else Attention(dim, num_heads[i - 2], qkv_bias=True, **dd)
                for j in range(len(rates))]
            blocks = [
                MixerBlock(dim, mixer, mlp_ratio, rate, layer_scale, NORM_EPS, **dd)
                for mixer, rate in zip(mixers, rates, strict=True)]
            stages.append(WindowStage(downsample, blocks, windows[i - 2]))
        super().__init__(
            MambaVisionStem(in_chans, stem_dim, dims[0], **dd), stages, dims, in_chans, num_classes, global_pool,
            drop_rate, NORM_EPS, decay_ssm=decay_ssm, **dd)
        self.norm = MapBatchNorm(dims[-1], **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^model\.", ""),  # of the authors' Hugging Face models
    (r"^patch_embed\.conv_down\.0\.", "stem.conv1.conv."),
    (r"^patch_embed\.conv_down\.1\.", "stem.conv1.norm."),
    (r"^patch_embed\.conv_down\.3\.", "stem.conv2.conv."),
    (r"^patch_embed\.conv_down\.4\.", "stem.conv2.norm."),
    (r"^(levels\.[01]\.blocks\.\d+)\.conv(\d)\.", r"\1.conv\2.conv."),
    (r"^(levels\.[01]\.blocks\.\d+)\.norm(\d)\.", r"\1.conv\2.norm."),
    (r"^levels\.(\d)\.downsample\.reduction\.0\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^levels\.", "stages."),
    (r"\.gamma_(\d)$", r".scale\1.gamma"),
    (r"\.mixer\.dt_proj\.", ".mixer.dt_"),
    (r"^norm\.", "norm.norm."),
    (r"^head\.", "head.fc."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official MambaVision checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    for key in [k for k in state if k.endswith(".conv1d_x.weight")]:
        mixer = key.removesuffix("conv1d_x.weight")
        if f"{mixer}conv1d_z.weight" in state:  # one convolution here; without its other half it is refused by name
            halves = [state.pop(f"{mixer}conv1d_{half}.weight") for half in "xz"]
            state[f"{mixer}conv_weight"] = torch.cat(halves).squeeze(1)
    return fit_official(state, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.conv1.conv",
        "paper_name": "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", "paper_ids": "arXiv:2407.08083",
        **kwargs})


def _published(top1: float, repository: str, file: str, crop_pct: float = 1.0, **kwargs: Any) -> dict[str, Any]:
    url = f"https://huggingface.co/nvidia/MambaVision-{repository}/resolve/main/mambavision_{file}.pth.tar"
    return _cfg(
        top1=top1, url=url, custom_load=True, license="cc-by-nc-sa-4.0", crop_pct=crop_pct,
        origin_url="https://github.com/NVlabs/MambaVision", **kwargs)


_512: dict[str, Any] = {"input_size": (3, 512, 512), "pool_size": (16, 16), "crop_pct": 0.93, "crop_mode": "squash"}

default_cfgs = generate_default_cfgs({
    "mambavision_tiny.in1k": _published(82.3, "T-1K", "tiny_1k"),
    "mambavision_tiny2.in1k": _published(82.7, "T2-1K", "tiny2_1k", crop_pct=0.98),
    "mambavision_small.in1k": _published(83.3, "S-1K", "small_1k", crop_pct=0.93),
    "mambavision_base.in1k": _published(84.2, "B-1K", "base_1k"),
    "mambavision_base.in21k_ft_in1k": _published(84.9, "B-21K", "base_21k"),
    "mambavision_large.in1k": _published(85.0, "L-1K", "large_1k"),
    "mambavision_large.in21k_ft_in1k": _published(86.1, "L-21K", "large_21k"),
    "mambavision_large2.in1k": _published(85.3, "L2-1K", "large2_1k"),
    "mambavision_large2_512.in21k_ft_in1k": _published(87.3, "L2-512-21K", "L2_21k_240m_512", **_512),
    "mambavision_large3_256.in21k_ft_in1k": _published(
        87.3, "L3-256-21K", "L3_21k_740m_256", input_size=(3, 256, 256), pool_size=(8, 8)),
    "mambavision_large3_512.in21k_ft_in1k": _published(88.1, "L3-512-21K", "L3_21k_740m_512", **_512),
    "test_mambavision.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, width: int, model_args: dict[str, Any], **kwargs: Any) -> MambaVision:
    model_args = {"dims": doubling(width), **model_args}
    return build_hierarchical(MambaVision, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


_LARGE = {"stem_dim": 64, "num_heads": (16, 32), "layer_scale": 1e-5}
_LARGE3 = {"depths": (3, 3, 20, 10), **_LARGE}


@register_model
def mambavision_tiny(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T: 31.8 M parameters, 82.3 % ImageNet-1K top-1 (published)."""
    return _create("mambavision_tiny", pretrained, 80, {"depths": (1, 3, 8, 4)}, **kwargs)


@register_model
def mambavision_tiny2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2: 35.1 M parameters, 82.7 % ImageNet-1K top-1 (published)."""
    return _create("mambavision_tiny2", pretrained, 80, {"depths": (1, 3, 11, 4)}, **kwargs)


@register_model
def mambavision_small(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S: 50.1 M parameters, 83.3 % ImageNet-1K top-1 (published)."""
    return _create("mambavision_small", pretrained, 96, {"depths": (3, 3, 7, 5), "stem_dim": 64}, **kwargs)


@register_model
def mambavision_base(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B: 97.7 M parameters, 84.2 % ImageNet-1K top-1 (published)."""
    model_args = {"depths": (3, 3, 10, 5), "stem_dim": 64, "layer_scale": 1e-5}
    return _create("mambavision_base", pretrained, 128, model_args, **kwargs)


@register_model
def mambavision_large(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L: 228.0 M parameters, 85.0 % ImageNet-1K top-1 (published)."""
    return _create("mambavision_large", pretrained, 196, {"depths": (3, 3, 10, 5), **_LARGE}, **kwargs)


@register_model
def mambavision_large2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2: 241.6 M parameters, 85.3 % ImageNet-1K top-1 (published)."""
    return _create("mambavision_large2", pretrained, 196, {"depths": (3, 3, 12, 5), **_LARGE}, **kwargs)


@register_model
def mambavision_large2_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2 for 512 pixels, 87.3 % ImageNet-1K top-1 after ImageNet-21K (published)."""
    model_args = {"depths": (3, 3, 12, 5), "windows": (32, 16), **_LARGE}
    return _create("mambavision_large2_512", pretrained, 196, model_args, **kwargs)


@register_model
def mambavision_large3_256(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for 256 pixels: 739.6 M parameters, 87.3 % ImageNet-1K top-1 after ImageNet-21K (published)."""
    return _create("mambavision_large3_256", pretrained, 256, {"windows": (16, 8), **_LARGE3}, **kwargs)


@register_model
def mambavision_large3_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for 512 pixels, 88.1 % ImageNet-1K top-1 after ImageNet-21K (published)."""
    return _create("mambavision_large3_512", pretrained, 256, {"windows": (32, 16), **_LARGE3}, **kwargs)


@register_model
def test_mambavision(pretrained: bool = False, **kwargs: Any) -> MambaVision:  # noqa: PT028  (a model, not a test)
    """A minimal MambaVision for tests."""
    model_args = {
        "dims": (16, 24, 32, 48), "stem_dim": 8, "depths": (1, 2, 3, 2), "num_heads": (2, 4), "windows": (3, 2)}
    return _create("test_mambavision", pretrained, 16, model_args, **kwargs)
