"""Vim (Vision Mamba): a plain stack of bidirectional Mamba blocks on patches, with a class token in their middle.

Paper: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
ICML 2024, arXiv:2401.09417. Origin of the weights: https://github.com/hustvl/Vim (Apache-2.0). This implementation is
our own.

The residual stream is float32 whatever the weights are, as in the authors' code. Other than there, images may have any
size of at least one patch: the position embedding is resized around its class token.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import BidirectionalMixer, PatchEmbed, RMSNorm

from ._cfg import classifier_cfg
from ._checkpoint import load_released, open_envelope, require_fit
from ._tokens import TokenBackbone, build_tokens, drop_path_rates, fit_pos_embed, stack_paths

__all__ = ["Vim"]


class VimBlock(nn.Module):
    """Pre-norm residual block on a stream in float32 or wider; ``[B, L, C]`` both ways, of any grid."""

    def __init__(
            self, dim: int, d_state: int, drop_path: float, device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = RMSNorm(dim, **dd)
        self.mixer = BidirectionalMixer(dim, d_state=d_state, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class Vim(TokenBackbone):
    """Vim classifier and backbone.

    Args:
        img_size: Side, or (height, width), of the images that the position embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "token" (the class token), "avg", "max" or "avgmax" of the patches, or "" for none.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next.
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log``, as the authors' recipe does.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "token",
            patch_size: int = 16,
            stride: int = 16,
            embed_dim: int = 192,
            depth: int = 24,
            d_state: int = 16,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            PatchEmbed(in_chans, embed_dim, patch_size, stride, **dd),
            [VimBlock(embed_dim, d_state, rate, **dd) for rate in drop_path_rates(drop_path_rate, depth)],
            RMSNorm(embed_dim, **dd),
            embed_dim, True, img_size, in_chans, num_classes, global_pool, drop_rate, decay_ssm, wide_stream=True, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released ``.pth``; see :func:`vmamba.models._checkpoint.load_released`."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


# our stacks of both paths, and what the authors call the parameter of the forward and of the backward path
BOTH_PATHS = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "x_proj": ("x_proj.weight", "x_proj_b.weight"),
    "dt_weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "dt_bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "A_log": ("A_log", "A_b_log"),
    "D": ("D", "D_b"),
}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TokenBackbone) -> dict[str, Tensor]:
    """Bring an official Vim checkpoint to this implementation's names and shapes; our own names pass unchanged.

    A position embedding for another grid is resized around its class token.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("blocks.") for k in state):
        state = {re.sub(r"^layers\.", "blocks.", re.sub(r"^norm_f\.", "norm.", k)): v for k, v in state.items()}
        state = stack_paths(state, BOTH_PATHS)
    state = fit_pos_embed(state, model)
    require_fit(state, model)
    return state


def _cfg(repository: str = "", file: str = "", top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    released = {
        # the files carry the pickled arguments of the training, which load_pretrained() knows how to pass over
        "url": f"https://huggingface.co/hustvl/{repository}/resolve/main/{file}", "custom_load": True,
        "origin_url": "https://github.com/hustvl/Vim",
    } if file else {}
    return classifier_cfg(
        top1, pool_size=None, first_conv="patch_embed.proj", classifier="head",
        paper_name="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        paper_ids="arXiv:2401.09417", **released, **kwargs)


default_cfgs = generate_default_cfgs({
    "vim_tiny_patch16_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 76.1),
    "vim_small_patch16_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 80.5),
    "vim_base_patch16_224.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 81.9),
    "vim_tiny_patch16_stride8_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 78.3),
    "vim_small_patch16_stride8_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 81.6),
    "test_vim.untrained": _cfg(input_size=(3, 96, 96)),
})


def _create_vim(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> Vim:
    return build_tokens(Vim, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 7.1 M parameters, 76.1 % ImageNet-1K top-1 (published)."""
    return _create_vim("vim_tiny_patch16_224", pretrained, {"embed_dim": 192}, kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 25.8 M parameters, 80.5 % ImageNet-1K top-1 (published)."""
    return _create_vim("vim_small_patch16_224", pretrained, {"embed_dim": 384}, kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 97.6 M parameters, 81.9 % ImageNet-1K top-1 (published)."""
    return _create_vim("vim_base_patch16_224", pretrained, {"embed_dim": 768}, kwargs)


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti+, fine-tuned on overlapping patches: 7.3 M parameters, 78.3 % ImageNet-1K top-1 (published)."""
    return _create_vim("vim_tiny_patch16_stride8_224", pretrained, {"embed_dim": 192, "stride": 8}, kwargs)


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S+, fine-tuned on overlapping patches: 26.0 M parameters, 81.6 % ImageNet-1K top-1 (published)."""
    return _create_vim("vim_small_patch16_stride8_224", pretrained, {"embed_dim": 384, "stride": 8}, kwargs)


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> Vim:  # noqa: PT028  (a model, not a test)
    """A minimal Vim for tests."""
    return _create_vim("test_vim", pretrained, {"img_size": 96, "embed_dim": 48, "depth": 3, "d_state": 4}, kwargs)
