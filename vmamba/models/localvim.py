"""LocalVim: a plain stack of Mamba blocks that walk rows, columns and windows.

Paper: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv:2403.09338.
Origin of the weights: https://github.com/hunto/LocalMamba (Apache-2.0). This implementation is our own.

The authors searched four directions for each block. Where height and width differ, the authors' code puts the outputs
of column scans back at wrong positions; here they go where they came from, so results differ from theirs on such grids
only. The residual stream is float32. Without a class token it is rotated by position before each block; in the
``midcls`` models it is not, and every walk has a class token at its middle step. Images may have any size of at least
one patch: position embedding and rotation are stretched to the grid.
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import LocalPathMixer, PatchEmbed, RMSNorm

from ._cfg import classifier_cfg
from ._checkpoint import load_released, open_envelope, require_fit
from ._tokens import TokenBackbone, build_tokens, drop_path_rates, fit_pos_embed, stack_paths

__all__ = ["LocalVim"]

# the directions that the authors' search found, block by block, as names of scan orders
SEARCHED_SCANS = (
    "h+v_flip+w7+w7_flip", "h_flip+w2_flip+w7+w7_flip", "h+h_flip+v+w7", "h+h_flip+v+v_flip", "h+h_flip+v+v_flip",
    "h+h_flip+v+v_flip", "h_flip+v+v_flip+w7", "h_flip+v+v_flip+w2_flip", "h+h_flip+v+v_flip", "h+h_flip+v+v_flip",
    "h+v+v_flip+w2", "h+v+v_flip+w2_flip", "h+h_flip+v_flip+w7", "h_flip+v+v_flip+w2", "h+h_flip+v+v_flip",
    "h+v+w2+w2_flip", "v+v_flip+w2+w7", "h+h_flip+v+w2", "h+h_flip+w2_flip+w7", "v+v_flip+w2+w2_flip",
)


def rotate(x: Tensor, grid: int = 14) -> Tensor:
    """Rotate pairs of channels by angles of row (first half) and column (second half); ``[B, H, W, C]`` both ways.

    Su et al., "RoFormer", arXiv:2104.09864, on two axes.

    Args:
        x: The map; C is a multiple of 4.
        grid: Rows and columns of the grid that the positions of any other are scaled to.
    """
    _, H, W, C = x.shape
    # counted by sums: a traced graph has no numbers to give to arange
    rates = torch.pow(10000.0, (1 - torch.ones_like(x[0, 0, 0, :C // 4]).cumsum(0)) / (C // 4))
    rows = (torch.ones_like(x[0, :, 0, 0]).cumsum(0) - 1) * (grid / H)
    columns = (torch.ones_like(x[0, 0, :, 0]).cumsum(0) - 1) * (grid / W)
    angles = torch.cat([
        (rows[:, None] * rates)[:, None].expand(-1, W, -1), (columns[:, None] * rates)[None].expand(H, -1, -1)], dim=-1)
    even, odd = x.unflatten(-1, (C // 2, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class LocalVimBlock(nn.Module):
    """Pre-norm residual block on a stream in float32 or wider; ``[B, L, C]`` both ways.

    Without a class token, L = H * W and the stream is rotated first; with one in the middle, L = H * W + 1.
    """

    def __init__(
            self, dim: int, d_state: int, scan: str, drop_path: float, class_token: bool, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.rotary = not class_token
        self.norm = RMSNorm(dim, **dd)
        if class_token:
            scan = "+".join(f"{walk}_token" for walk in scan.split("+"))
        self.mixer = LocalPathMixer(dim, scan, d_state=d_state, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        if self.rotary:
            x = rotate(x.unflatten(1, (H, W))).flatten(1, 2)
        return x + self.drop_path(self.mixer(self.norm(x), H, W))


class LocalVim(TokenBackbone):
    """LocalVim classifier and backbone.

    Args:
        img_size: Side, or (height, width), of the images that the position embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "avg", "max" or "avgmax" of the patches, "token" (the class token), or "" for none.
        embed_dim: Channels; a multiple of 4.
        depth: Blocks.
        d_state: States N per channel.
        scans: Scan order of each block; or one name for all.
        class_token: Put a class token into the middle of the patches, and do not rotate the stream.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log``, as the authors' recipe does.

    Raises:
        ValueError: There are fewer or more ``scans`` than blocks, or one has no such name.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            embed_dim: int = 192,
            depth: int = 20,
            d_state: int = 16,
            scans: str | Sequence[str] = "local4",
            class_token: bool = False,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        scans = [scans] * depth if isinstance(scans, str) else scans
        if len(scans) != depth:
            raise ValueError(f"scans has {len(scans)} names, but needs one for each of the {depth} blocks")
        rates = drop_path_rates(drop_path_rate, depth)
        super().__init__(
            PatchEmbed(in_chans, embed_dim, **dd),
            [LocalVimBlock(embed_dim, d_state, scan, rate, class_token, **dd)
             for scan, rate in zip(scans, rates, strict=True)],
            RMSNorm(embed_dim, **dd),
            embed_dim, class_token, img_size, in_chans, num_classes, global_pool, drop_rate, decay_ssm,
            wide_stream=True, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


# our stacks, and what the authors call the parameter of path k
_STACKS = {
    stack: tuple(name.format(k=k) for k in range(4)) for stack, name in {
        "conv_weight": "conv1d_{k}.weight", "conv_bias": "conv1d_{k}.bias", "x_proj": "x_proj_{k}.weight",
        "dt_weight": "dt_proj_{k}.weight", "dt_bias": "dt_proj_{k}.bias", "A_log": "A_log_{k}", "D": "D_{k}",
    }.items()
}
_RENAMES = (
    (r"^layers\.", "blocks."),
    (r"^norm_f\.", "norm."),
    (r"\.attn\.", ".attention."),
    (r"\.global_reduce\.", ".reduce."),
    (r"\.channel_select\.", ".expand."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TokenBackbone) -> dict[str, Tensor]:
    """Bring an official LocalVim checkpoint to this implementation's names; our own names pass unchanged.

    The tables of the rotation are left out, a position embedding for another grid is resized.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("blocks.") for k in state):
        native = {}
        for key, value in state.items():
            for pattern, replacement in _RENAMES:
                key = re.sub(pattern, replacement, key)
            if not key.startswith("rope."):
                native[key] = value
        state = stack_paths(native, _STACKS)
    state = fit_pos_embed(state, model)
    require_fit(state, model)
    return state


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(
        pool_size=None, first_conv="patch_embed.proj", classifier="head",
        paper_name="LocalMamba: Visual State Space Model with Windowed Selective Scan", paper_ids="arXiv:2403.09338",
        **kwargs)


_ORIGIN = "https://github.com/hunto/LocalMamba"

default_cfgs = generate_default_cfgs({
    "localvim_tiny.in1k": _cfg(
        top1=76.2, origin_url=_ORIGIN, url=f"{_ORIGIN}/releases/download/v1.0.0/local_vim_tiny.ckpt", custom_load=True),
    # the file that the authors link to is that of LocalVMamba-S
    "localvim_small.in1k": _cfg(
        origin_url=_ORIGIN, notes=("ImageNet-1K top-1 81.1 % (published)", "weights not released")),
    "localvim_tiny_midcls.in1k": _cfg(
        top1=77.8, origin_url=_ORIGIN, url=f"{_ORIGIN}/releases/download/v1.0.0/local_vim_tiny_middle_cls_token.ckpt",
        custom_load=True),
    "localvim_small_midcls.untrained": _cfg(),
    "test_localvim.untrained": _cfg(input_size=(3, 96, 96)),
    "test_localvim_midcls.untrained": _cfg(input_size=(3, 96, 96)),
})


_MIDCLS = {"class_token": True, "global_pool": "token"}


def _create_localvim(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> LocalVim:
    return build_tokens(LocalVim, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T: 8.0 M parameters, 76.2 % ImageNet-1K top-1 (published)."""
    return _create_localvim("localvim_tiny", pretrained, {"embed_dim": 192, "scans": SEARCHED_SCANS}, kwargs)


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S: 27.8 M parameters, 81.1 % ImageNet-1K top-1 (published)."""
    return _create_localvim("localvim_small", pretrained, {"embed_dim": 384, "scans": SEARCHED_SCANS}, kwargs)


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle: 8.0 M parameters, 77.8 % ImageNet-1K top-1 (published)."""
    model_args = {"embed_dim": 192, "scans": SEARCHED_SCANS, **_MIDCLS}
    return _create_localvim("localvim_tiny_midcls", pretrained, model_args, kwargs)


@register_model
def localvim_small_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with a class token in the middle: 27.8 M parameters; neither accuracy nor weights are published."""
    model_args = {"embed_dim": 384, "scans": SEARCHED_SCANS, **_MIDCLS}
    return _create_localvim("localvim_small_midcls", pretrained, model_args, kwargs)


@register_model
def test_localvim(pretrained: bool = False, **kwargs: Any) -> LocalVim:  # noqa: PT028  (a model, not a test)
    """A minimal LocalVim for tests."""
    model_args = {"img_size": 96, "embed_dim": 48, "depth": 3, "d_state": 4}
    return _create_localvim("test_localvim", pretrained, model_args, kwargs)


@register_model
def test_localvim_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:  # noqa: PT028  (a model, not a test)
    """A minimal LocalVim with a class token for tests."""
    model_args = {"img_size": 96, "embed_dim": 48, "depth": 3, "d_state": 4, **_MIDCLS}
    return _create_localvim("test_localvim_midcls", pretrained, model_args, kwargs)
