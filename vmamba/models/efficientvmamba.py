"""EfficientVMamba: light backbones of atrous scans at high resolution and inverted residuals at low resolution.

Paper: Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", arXiv:2403.09977.
Origin of the weights: https://github.com/TerryPei/EfficientVMamba (Apache-2.0 by its README). This implementation is
our own.

``efficientvmamba_small`` is 64 channels wide, as its published size and training log; the paper's table and the
published configuration file say 96, which is another model of 24.8 M parameters. Maps are channels-last throughout and
any image size works.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import (
    SS2D,
    ChannelAttention,
    Conv2dNHWC,
    ConvNorm,
    LayerNorm,
    PatchMerging,
    PatchStem,
    SqueezeExcite,
)

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["EfficientVMamba"]

NORM_EPS = 1e-5


class EfficientVMambaBlock(nn.Module):
    """EVSS block: atrous scan beside a convolution, each scaled by the same channel attention.

    Arxiv:2403.09977, section 3.3 and figure 3; ``[B, H, W, C] -> [B, H, W, C]``.
    """

    def __init__(
            self, dim: int, drop_path: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = SS2D(
            dim, d_state=16, ssm_ratio=2.0, conv_bias=True, scan="atrous", gate=True, norm_eps=NORM_EPS, **dd)
        self.conv_branch = nn.Sequential(
            ConvNorm(dim, dim, 3, groups=dim, bias=True, act=nn.GELU, **dd), Conv2dNHWC(dim, dim, 1, **dd))
        self.attention = ChannelAttention(dim, norm_eps=NORM_EPS, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        scan, conv = self.mixer(y).flatten(1, 2), self.conv_branch(y).flatten(1, 2)
        return x + self.drop_path((self.attention(scan) + self.attention(conv)).view(x.shape))


class InvertedResidual(nn.Module):
    """Widen, mix by a depthwise convolution, squeeze and excite, narrow; ``[B, H, W, C] -> [B, H, W, C]``.

    Sandler et al., "MobileNetV2", arXiv:1801.04381, with the excitation of Hu et al., arXiv:1709.01507.
    """

    def __init__(self, dim: int, drop_path: float, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        hidden = 4 * dim
        self.expand = ConvNorm(dim, hidden, 1, act=nn.ReLU, **dd)
        self.depthwise = ConvNorm(hidden, hidden, 3, groups=hidden, act=nn.ReLU, **dd)
        self.se = SqueezeExcite(hidden, **dd)
        self.project = ConvNorm(hidden, dim, 1, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.project(self.se(self.depthwise(self.expand(x)))))


class EfficientVMamba(HierarchicalBackbone):
    """EfficientVMamba classifier and backbone: two stages of atrous scans, then two of inverted residuals.

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

    default_init = (".x_proj", ".se.reduce", ".se.expand")

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (48, 96, 192, 384),
            depths: tuple[int, ...] = (2, 2, 4, 2),
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            block = EfficientVMambaBlock if i < 2 else InvertedResidual
            downsample = PatchMerging(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity()
            stages.append(Stage(downsample, [block(dims[i], rate, **dd) for rate in rates]))
        super().__init__(
            PatchStem(in_chans, dims[0], NORM_EPS, **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"\.se\.norm\.", ".attention.norm."),
    (r"\.se\.global_reduce\.", ".attention.reduce."),
    (r"\.se\.channel_select\.", ".attention.expand."),
    (r"\.conv_branch\.0\.", ".conv_branch.0.conv."),
    (r"\.conv_branch\.1\.", ".conv_branch.0.norm."),
    (r"\.conv_branch\.3\.", ".conv_branch.1."),
    (r"\.conv_pw\.", ".expand."),
    (r"\.conv_dw\.", ".depthwise."),
    (r"\.conv_pw2\.", ".project."),
    (r"\.(expand|depthwise|project)\.0\.", r".\1.conv."),
    (r"\.(expand|depthwise|project)\.1\.", r".\1.norm."),
    (r"\.se\.conv_(reduce|expand)\.", r".se.\1."),
)


def _native_name(key: str) -> str:
    # official stages of convolutions are flat: a permutation, the blocks, a permutation, the downsampling
    key = re.sub(r"^(layers\.\d+)\.\d+\.(reduction|norm)\.", r"\1.downsample.\2.", key)
    key = re.sub(r"^(layers\.\d+)\.(\d+)\.", lambda m: f"{m[1]}.blocks.{int(m[2]) - 1}.", key)
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return vmamba_native_name(key, patch_stem=True)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official EfficientVMamba checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    return fit_official(state_dict, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(
        paper_name="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
        paper_ids="arXiv:2403.09977", **kwargs)


def _published(size: str, top1: float) -> dict[str, Any]:
    """The authors publish the folder that holds the weights, and not the name of a file to download."""
    return _cfg(top1=top1, origin_url=f"https://huggingface.co/TerryPei/EfficientVMamba-{size}")


default_cfgs = generate_default_cfgs({
    "efficientvmamba_tiny.in1k": _published("Tiny", top1=76.5),
    "efficientvmamba_small.in1k": _published("Small", top1=78.7),
    "efficientvmamba_base.in1k": _published("Base", top1=81.8),
    "test_efficientvmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> EfficientVMamba:
    return build_hierarchical(EfficientVMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T: 6.5 M parameters, 76.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(48), "depths": (2, 2, 4, 2)}
    return _create("efficientvmamba_tiny", pretrained, model_args, **kwargs)


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S: 11.3 M parameters, 78.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (2, 2, 4, 2)}
    return _create("efficientvmamba_small", pretrained, model_args, **kwargs)


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B: 33.7 M parameters, 81.8 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 9, 2)}
    return _create("efficientvmamba_base", pretrained, model_args, **kwargs)


@register_model
def test_efficientvmamba(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:  # noqa: PT028  (a model)
    """A minimal EfficientVMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}
    return _create("test_efficientvmamba", pretrained, model_args, **kwargs)
