"""VSSD: state-space duality without an order in three stages, attention in the last.

Paper: Shi et al., "VSSD: Vision Mamba with Non-Causal State Space Duality", ICCV 2025, arXiv:2407.18559.
Origin of the weights: https://github.com/YuHengsss/VSSD (no licence stated: look at their terms before use). This
implementation is our own, written from the paper and a description.

Maps are channels-last throughout and any image size works.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import CPEBlock, InvertedDownsample, NonCausalSSD, ResidualStem

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["VSSD"]

NORM_EPS = 1e-5


class MapAttention(nn.Module):
    """Self-attention among all positions of a map; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(self, dim: int, num_heads: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x.flatten(1, 2)).view(x.shape)


class VSSD(HierarchicalBackbone):
    """VSSD classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        num_heads: Heads of the mixers in the four stages.
        d_state: States N of the state-space mixers.
        num_groups: Groups of heads that share B and C.
        mlp_ratio: Hidden channels of the MLP as a multiple of the block's.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
    """

    default_init = ()

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (64, 128, 256, 512),
            depths: tuple[int, ...] = (2, 4, 8, 4),
            num_heads: tuple[int, ...] = (2, 4, 8, 16),
            d_state: int = 64,
            num_groups: int = 1,
            mlp_ratio: float = 4.0,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = []
            for rate in rates:
                mixer = (
                    NonCausalSSD(dims[i], num_heads[i], d_state, num_groups, NORM_EPS, **dd) if i < 3
                    else MapAttention(dims[i], num_heads[i], **dd))
                blocks.append(CPEBlock(dims[i], mixer, mlp_ratio, rate, NORM_EPS, **dd))
            stages.append(Stage(InvertedDownsample(dims[i - 1], dims[i], **dd) if i > 0 else nn.Identity(), blocks))
        super().__init__(
            ResidualStem(in_chans, dims[0], **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^patch_embed\.", "stem."),
    (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
    (r"\.downsample\.conv\.1\.conv\.", ".downsample.depthwise."),
    (r"\.downsample\.conv\.2\.", ".downsample.project."),
    (r"\.attn\.to_qkv\.", ".mixer.attn.qkv."),
    (r"\.attn\.to_out\.", ".mixer.attn.proj."),
    (r"\.attn\.conv2d\.", ".mixer.conv."),
    (r"(\.blocks\.\d+)\.attn\.", r"\1.mixer."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return vmamba_native_name(key, patch_stem=False)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official VSSD checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    return fit_official(state_dict, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.conv1.conv",
        "paper_name": "VSSD: Vision Mamba with Non-Causal State Space Duality", "paper_ids": "arXiv:2407.18559",
        **kwargs})


def _published(top1: float, file: str) -> dict[str, Any]:
    return _cfg(
        top1=top1, url=f"https://huggingface.co/YuhengSSS/VSSD/resolve/main/{file}.pth", custom_load=True,
        license="other", origin_url="https://github.com/YuHengsss/VSSD")


default_cfgs = generate_default_cfgs({
    "vssd_micro.in1k": _published(82.5, "vssd_micro_best"),
    "vssd_tiny.in1k": _published(83.6, "vssd_tiny_best_ema"),
    "vssd_tiny.mesa_in1k": _published(84.1, "vssd_tiny_e300_with_mesa"),
    "vssd_small.in1k": _published(84.1, "vssd_small_best_ema"),
    "vssd_small.mesa_in1k": _published(84.5, "vssd_small_e300_with_mesa"),
    "vssd_base.in1k": _published(84.7, "vssd_base_best_ema"),
    "vssd_base.mesa_in1k": _published(85.4, "vssd_base_e300_with_mesa"),
    "test_vssd.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> VSSD:
    return build_hierarchical(VSSD, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def vssd_micro(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-M: 13.5 M parameters, 82.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(48), "depths": (2, 2, 8, 4), "num_heads": (2, 4, 8, 16), "d_state": 48}
    return _create("vssd_micro", pretrained, model_args, **kwargs)


@register_model
def vssd_tiny(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-T: 24.3 M parameters, 83.6 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (2, 4, 8, 4), "num_heads": (2, 4, 8, 16)}
    return _create("vssd_tiny", pretrained, model_args, **kwargs)


@register_model
def vssd_small(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-S: 40.1 M parameters, 84.1 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (3, 4, 21, 5), "num_heads": (2, 4, 8, 16)}
    return _create("vssd_small", pretrained, model_args, **kwargs)


@register_model
def vssd_base(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-B: 88.8 M parameters, 84.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (3, 4, 21, 5), "num_heads": (3, 6, 12, 24)}
    return _create("vssd_base", pretrained, model_args, **kwargs)


@register_model
def test_vssd(pretrained: bool = False, **kwargs: Any) -> VSSD:  # noqa: PT028  (a model, not a test)
    """A minimal VSSD for tests."""
    model_args = {
        "dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4), "d_state": 8, "num_groups": 2}
    return _create("test_vssd", pretrained, model_args, **kwargs)
