"""PlainMamba: a plain stack of continuous scans at one resolution, without a class token.

Paper: Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", BMVC 2024, arXiv:2403.17695.
Origin of the weights: https://github.com/ChenhongyiYang/PlainMamba (Apache-2.0). This implementation is our own.

The released weights were trained with two deviations from the paper, which ``as_released=False`` leaves out; see
:class:`vmamba.layers.ContinuousMixer`. Images may have any size: the position embedding is resized.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import ContinuousMixer, Conv2dNHWC, ConvNorm, LayerNorm

from ._cfg import classifier_cfg
from ._checkpoint import load_released, open_envelope, require_fit
from ._tokens import TokenBackbone, build_tokens, drop_path_rates, fit_pos_embed

__all__ = ["PlainMamba"]

STEM_CHANS = 64


class PlainMambaStem(nn.Module):
    """Convolutions at half resolution, then patches: images ``[B, 3, H, W] -> [B, ceil(H / 16), ceil(W / 16), C]``."""

    stride = 16

    def __init__(
            self, in_chans: int, dim: int, convs: int, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.stem = ConvNorm(in_chans, STEM_CHANS, 7, stride=2, act=nn.ReLU, **dd)
        self.convs = nn.Sequential(
            *(ConvNorm(STEM_CHANS, STEM_CHANS, 3, act=nn.ReLU, **dd) for _ in range(convs)))
        self.proj = Conv2dNHWC(STEM_CHANS, dim, 8, stride=8, **dd)

    @torch.jit.ignore
    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return (height + 15) // 16, (width + 15) // 16

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(self.stem(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)))
        _, H, W, _ = x.shape
        return self.proj(F.pad(x, (0, 0, 0, (8 - W % 8) % 8, 0, (8 - H % 8) % 8)))


class PlainMambaBlock(nn.Module):
    """Pre-norm residual block, where asked for followed by a depthwise convolution; ``[B, H * W, C]`` both ways."""

    def __init__(
            self, dim: int, d_state: int, drop_path: float, dw_conv: bool, as_released: bool, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = LayerNorm(dim, eps=1e-5, **dd)
        self.mixer = ContinuousMixer(dim, d_state, as_released=as_released, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.dw = ConvNorm(dim, dim, 3, groups=dim, act=nn.GELU, **dd) if dw_conv else nn.Identity()

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        # norm and sum are of tokens: on maps of symbolic sizes, torch cannot tell that their strides are contiguous
        x = x + self.drop_path(self.mixer(self.norm(x).unflatten(1, (H, W))).flatten(1, 2))
        return self.dw(x.unflatten(1, (H, W))).flatten(1, 2)


class PlainMamba(TokenBackbone):
    """PlainMamba classifier and backbone.

    Args:
        img_size: Side, or (height, width), of the images that the position embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "avg", "max" or "avgmax" of the tokens, or "" for none.
        embed_dim: Channels.
        depth: Blocks.
        stem_convs: 3x3 convolutions of the stem.
        dw_blocks: Blocks that end with a depthwise convolution.
        d_state: States N per channel.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        as_released: Compute as the released weights need it and not as the paper says.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            embed_dim: int = 192,
            depth: int = 24,
            stem_convs: int = 1,
            dw_blocks: tuple[int, ...] = (),
            d_state: int = 16,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            as_released: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        blocks = [
            PlainMambaBlock(embed_dim, d_state, rate, i in dw_blocks, as_released, **dd)
            for i, rate in enumerate(drop_path_rates(drop_path_rate, depth))]
        super().__init__(
            PlainMambaStem(in_chans, embed_dim, stem_convs, **dd), blocks, LayerNorm(embed_dim, eps=1e-6, **dd),
            embed_dim, False, img_size, in_chans, num_classes, global_pool, drop_rate, decay_ssm=False, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^layers\.", "blocks."),
    (r"\.mamba\.", ".mixer."),
    (r"\.conv2d\.", ".conv."),
    (r"\.dt_proj\.", ".dt_"),
    (r"\.direction_Bs$", ".direction_B"),
    (r"\.dw\.0\.", ".dw.conv."),
    (r"\.dw\.1\.", ".dw.norm."),
    (r"^ln1\.", "norm."),
    (r"^head\.fc\.", "head."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^patch_embed\.stem\.0\.", "patch_embed.stem.conv."),
    (r"^patch_embed\.stem\.1\.", "patch_embed.stem.norm."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    # official convolutions are flat: convolution, norm and activation of each
    match = re.match(r"^patch_embed\.convs\.(\d+)\.", key)
    if match:
        layer = int(match[1])
        key = f"patch_embed.convs.{layer // 3}.{'norm' if layer % 3 else 'conv'}.{key[match.end():]}"
    return key


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TokenBackbone) -> dict[str, Tensor]:
    """Bring an official PlainMamba checkpoint to this implementation's names; our own names pass unchanged.

    A position embedding for another grid is resized.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict, beside=("head.fc.",))
    if not any(k.startswith("blocks.") for k in state):
        state = {_native_name(k): v for k, v in state.items()}
    state = fit_pos_embed(state, model)
    require_fit(state, model)
    return state


def _cfg(file: str = "", top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    released = {
        "url": f"https://huggingface.co/ChenhongyiYang/PlainMamba/resolve/main/{file}", "custom_load": True,
        "origin_url": "https://github.com/ChenhongyiYang/PlainMamba",
    } if file else {}
    return classifier_cfg(
        top1, pool_size=None, first_conv="patch_embed.stem.conv", classifier="head",
        paper_name="PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
        paper_ids="arXiv:2403.17695", **released, **kwargs)


default_cfgs = generate_default_cfgs({
    "plainmamba_l1.in1k": _cfg("l1.pth", 77.9),
    "plainmamba_l2.in1k": _cfg("l2.pth", 81.6),
    "plainmamba_l3.in1k": _cfg("l3.pth", 82.3),
    "test_plainmamba.untrained": _cfg(input_size=(3, 96, 96)),
})


def _create_plainmamba(
        variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> PlainMamba:
    return build_tokens(PlainMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1: 7.6 M parameters, 77.9 % ImageNet-1K top-1 (published)."""
    model_args = {"embed_dim": 192, "depth": 24, "stem_convs": 1, "dw_blocks": (0,)}
    return _create_plainmamba("plainmamba_l1", pretrained, model_args, kwargs)


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2: 26.1 M parameters, 81.6 % ImageNet-1K top-1 (published)."""
    return _create_plainmamba(
        "plainmamba_l2", pretrained, {"embed_dim": 384, "depth": 24, "stem_convs": 2}, kwargs)


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3: 51.0 M parameters, 82.3 % ImageNet-1K top-1 (published)."""
    return _create_plainmamba(
        "plainmamba_l3", pretrained, {"embed_dim": 448, "depth": 36, "stem_convs": 2}, kwargs)


@register_model
def test_plainmamba(pretrained: bool = False, **kwargs: Any) -> PlainMamba:  # noqa: PT028  (a model, not a test)
    """A minimal PlainMamba for tests."""
    model_args = {"img_size": 96, "embed_dim": 48, "depth": 3, "dw_blocks": (0,), "d_state": 4}
    return _create_plainmamba("test_plainmamba", pretrained, model_args, kwargs)
