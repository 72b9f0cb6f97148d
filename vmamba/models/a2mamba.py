"""A2Mamba: neighbourhood attention that also mixes the hidden states of a scan; global attention in the last stage.

Paper: Lou et al., "A2Mamba: Attention-augmented State Space Models for Visual Recognition", arXiv:2507.16624.
Origin of the weights: https://github.com/LMMMEng/A2Mamba (no licence stated: look at their terms before use). This
implementation is our own, written from the paper and a description.

The authors' code takes images of 224 pixels and more; here windows that are larger than their map shrink to it, so any
image size works. Maps are channels-last throughout.
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, LayerNorm, get_device_dtype
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import AttentiveGlobal, AttentiveSSM, ConvNorm, DepthwiseConvAdd

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released, open_envelope
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, drop_path_rates

__all__ = ["A2Mamba"]

NORM_EPS = 1e-6


class A2MambaStem(nn.Module):
    """Four 3x3 convolutions, two of stride 2: ``[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]``."""

    def __init__(self, in_chans: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.convs = nn.Sequential(
            ConvNorm(in_chans, dim // 2, 3, stride=2, act=nn.GELU, **dd),
            ConvNorm(dim // 2, dim // 2, 3, act=nn.GELU, **dd),
            ConvNorm(dim // 2, dim, 3, stride=2, act=nn.GELU, **dd), ConvNorm(dim, dim, 3, **dd))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1))


class ResidualConvFFN(nn.Module):
    """Widen, activate, add a depthwise 3x3 convolution, narrow; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(self, dim: int, hidden: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, **dd)
        self.act = nn.GELU()
        self.conv = DepthwiseConvAdd(hidden, **dd)
        self.fc2 = nn.Linear(hidden, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        return self.fc2(self.conv(x))


class ScaleBias(nn.Module):
    """A weight and a bias for each channel, ``[..., C] -> [..., C]``."""

    def __init__(self, dim: int, value: float, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """The initial scale, without a shift."""
        nn.init.constant_(self.weight, self.value)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class A2MambaBlock(nn.Module):
    """Convolution, mixer, convolution, feed-forward network, each added; ``[B, H, W, C] -> [B, H, W, C]``.

    Args:
        dim: Channels C.
        mixer: Maps to maps of the same shape.
        mlp_ratio: Hidden channels of the feed-forward network as a multiple of C.
        drop_path: Stochastic depth.
        shortcut_scale: Initial scale of the shortcuts around mixer and network; None for none.
        branch_scale: Initial scale of the branches; None for none.
    """

    def __init__(
            self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float, shortcut_scale: float | None,
            branch_scale: float | None, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()

        def scale(value: float | None) -> nn.Module:
            return ScaleBias(dim, value, **dd) if value is not None else nn.Identity()

        self.cpe1 = DepthwiseConvAdd(dim, **dd)
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = mixer
        self.shortcut1, self.branch1 = scale(shortcut_scale), scale(branch_scale)
        self.cpe2 = DepthwiseConvAdd(dim, **dd)
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mlp = ResidualConvFFN(dim, int(dim * mlp_ratio), **dd)
        self.shortcut2, self.branch2 = scale(shortcut_scale), scale(branch_scale)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        x = self.shortcut1(x) + self.drop_path1(self.branch1(self.mixer(self.norm1(x))))
        x = self.cpe2(x)
        return self.shortcut2(x) + self.drop_path2(self.branch2(self.mlp(self.norm2(x))))


class ProjectedHead(ClassifierHead):
    """timm's head after a projection of each position; without pooling and classes it gives the map as it is."""

    def __init__(
            self, dim: int, hidden: int, num_classes: int, pool_type: str, drop_rate: float, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(hidden, num_classes, pool_type=pool_type, drop_rate=drop_rate, input_fmt="NHWC", **dd)
        self.project: nn.Module = ConvNorm(dim, hidden, 1, bias=True, act=nn.SiLU, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.global_pool(self.project(x)))
        return x if pre_logits else self.fc(x)


class A2Mamba(HierarchicalBackbone):
    """A2Mamba classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        num_heads: Heads of the attention in the four stages, even numbers.
        windows: Sides of the attention's windows in the four stages, odd numbers.
        mlp_ratios: Hidden channels of the feed-forward networks as multiples of the blocks'.
        shortcut_scales: Initial scales of the shortcuts in the four stages; None for none.
        branch_scales: Initial scales of the branches in the four stages; None for none.
        head_dim: Channels before the pooling of the head.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
    """

    default_init = (".x_proj",)

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (48, 96, 256, 448),
            depths: tuple[int, ...] = (2, 2, 10, 2),
            num_heads: tuple[int, ...] = (2, 4, 8, 16),
            windows: tuple[int, ...] = (11, 9, 7, 7),
            mlp_ratios: tuple[float, ...] = (4.0, 4.0, 3.0, 3.0),
            shortcut_scales: Sequence[float | None] = (None, None, None, None),
            branch_scales: Sequence[float | None] = (None, None, None, None),
            head_dim: int = 1024,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            mixer = AttentiveSSM if i < 3 else AttentiveGlobal
            blocks = [
                A2MambaBlock(
                    dims[i], mixer(dims[i], num_heads[i], windows[i], **dd), mlp_ratios[i], rate, shortcut_scales[i],
                    branch_scales[i], **dd)
                for rate in rates]
            stages.append(Stage(ConvNorm(dims[i - 1], dims[i], 3, stride=2, **dd) if i > 0 else nn.Identity(), blocks))
        super().__init__(
            A2MambaStem(in_chans, dims[0], **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, **dd)
        self.norm = nn.Identity()
        self.head = ProjectedHead(dims[-1], head_dim, num_classes, global_pool, drop_rate, **dd)
        self.head_hidden_size = head_dim
        self.init_weights(needs_reset=False)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        bare = num_classes == 0 and global_pool == ""
        if bare:
            self.head.project = nn.Identity()
        self.head.reset(
            num_classes, global_pool, in_features=self.num_features if bare else None, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^patch_embed\.(\d+)\.", lambda m: f"stem.convs.{int(m[1]) // 3}.{'norm' if int(m[1]) % 3 else 'conv'}."),
    (r"^layers\.([135])\.([01])\.", lambda m: (
        f"stages.{(int(m[1]) + 1) // 2}.downsample.{'norm' if m[2] == '1' else 'conv'}.")),
    (r"^layers\.(\d)\.", lambda m: f"stages.{int(m[1]) // 2}."),
    (r"\.token_mixer\.", ".mixer."),
    (r"\.mixer\.gate\.0\.", ".mixer.gate.conv."),
    (r"\.mixer\.gate\.1\.", ".mixer.gate.norm."),
    (r"\.mixer\.proj\.0\.", ".mixer.proj_norm."),
    (r"\.mixer\.proj\.1\.", ".mixer.proj."),
    (r"\.mixer\.rpb\.0$", ".mixer.bias"),
    (r"\.mixer\.rpb\.2$", ".mixer.global_bias"),
    (r"\.ssm\.conv2d\.", ".ssm.conv."),
    (r"\.ssm\.x_proj_weight$", ".ssm.x_proj.weight"),
    (r"\.ssm\.dt_projs_", ".ssm.dt_"),
    (r"\.ssm\.A_logs$", ".ssm.A_log"),
    (r"\.ssm\.Ds$", ".ssm.D"),
    (r"\.ssm\.state_fusion\.", ".ssm.fusion."),
    (r"\.mlp\.dwconv\.", ".mlp.conv."),
    (r"^classifier\.0\.", "head.project.conv."),
    (r"^classifier\.1\.", "head.project.norm."),
    (r"^classifier\.4\.", "head.fc."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official A2Mamba checkpoint to this implementation's names, as ``fit_official`` says.

    Of the bias that official files hold twice one is kept, and the angles of the position encoding are left out.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    scaled = next((b for b in model.modules() if isinstance(b, A2MambaBlock) and
                   isinstance(b.shortcut1, ScaleBias)), None)
    scale = "shortcut" if scaled is not None else "branch"

    def native_name(key: str) -> str:
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        return re.sub(r"\.layer_scale(\d)\.", rf".{scale}\1.", key)

    state = {k: v for k, v in open_envelope(state_dict).items() if not k.endswith((".rope.angle", ".rpb.1"))}
    return fit_official(state, model, native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.convs.0.conv", "crop_pct": 0.9,
        "paper_name": "A2Mamba: Attention-augmented State Space Models for Visual Recognition",
        "paper_ids": "arXiv:2507.16624", **kwargs})


def _published(top1: float, size: str, **kwargs: Any) -> dict[str, Any]:
    folder = "https://huggingface.co/LMMM2025/A2Mamba/resolve/main/a2mamba_pretrained_weights"
    return _cfg(
        top1=top1, url=f"{folder}/a2mamba_{size}.pth", custom_load=True, license="other",
        origin_url="https://github.com/LMMMEng/A2Mamba", **kwargs)


default_cfgs = generate_default_cfgs({
    "a2mamba_nano.in1k": _published(78.7, "nano"),
    "a2mamba_tiny.in1k": _published(83.0, "tiny"),
    "a2mamba_small.in1k": _published(84.7, "small"),
    "a2mamba_base.in1k": _published(85.7, "base", crop_pct=0.95),
    "a2mamba_large.in1k": _published(86.1, "large", crop_pct=0.975),
    "test_a2mamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> A2Mamba:
    return build_hierarchical(A2Mamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


_LAYER_SCALE = {"branch_scales": (1.0, 1.0, 1e-6, 1e-6)}


@register_model
def a2mamba_nano(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-N: 4.2 M parameters, 78.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": (32, 64, 128, 192), "depths": (2, 2, 8, 2), "num_heads": (2, 2, 4, 8)}
    return _create("a2mamba_nano", pretrained, model_args, **kwargs)


@register_model
def a2mamba_tiny(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-T: 15.4 M parameters, 83.0 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": (48, 96, 256, 448), "depths": (2, 2, 10, 2), "num_heads": (2, 4, 8, 16)}
    return _create("a2mamba_tiny", pretrained, model_args, **kwargs)


@register_model
def a2mamba_small(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-S: 30.7 M parameters, 84.7 % ImageNet-1K top-1 (published)."""
    model_args = {
        "dims": (64, 128, 320, 512), "depths": (2, 4, 12, 4), "num_heads": (2, 4, 10, 16),
        "shortcut_scales": (None, None, 1.0, 1.0)}
    return _create("a2mamba_small", pretrained, model_args, **kwargs)


@register_model
def a2mamba_base(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-B: 51.1 M parameters, 85.7 % ImageNet-1K top-1 (published)."""
    model_args = {
        "dims": (96, 192, 384, 512), "depths": (4, 6, 12, 6), "num_heads": (4, 8, 12, 16),
        "mlp_ratios": (4.0, 4.0, 3.75, 3.75), **_LAYER_SCALE}
    return _create("a2mamba_base", pretrained, model_args, **kwargs)


@register_model
def a2mamba_large(pretrained: bool = False, **kwargs: Any) -> A2Mamba:
    """A2Mamba-L: 93.7 M parameters, 86.1 % ImageNet-1K top-1 (published)."""
    model_args = {
        "dims": (96, 192, 448, 672), "depths": (4, 6, 18, 6), "num_heads": (4, 8, 16, 24),
        "mlp_ratios": (4.0, 4.0, 4.0, 4.0), **_LAYER_SCALE}
    return _create("a2mamba_large", pretrained, model_args, **kwargs)


@register_model
def test_a2mamba(pretrained: bool = False, **kwargs: Any) -> A2Mamba:  # noqa: PT028  (a model, not a test)
    """A minimal A2Mamba for tests."""
    model_args = {
        "dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4), "windows": (5, 5, 3, 3),
        "mlp_ratios": (2.0, 2.0, 2.0, 2.0), "head_dim": 64}
    return _create("test_a2mamba", pretrained, model_args, **kwargs)
