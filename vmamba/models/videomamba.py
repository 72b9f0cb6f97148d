"""VideoMamba: a plain stack of bidirectional Mamba blocks on the patches of clips, or of images.

Paper: Li et al., "VideoMamba: State Space Model for Efficient Video Understanding", ECCV 2024, arXiv:2403.06977.
Origin of the weights: https://github.com/OpenGVLab/VideoMamba (Apache-2.0). This implementation is our own.

Models take clips [B, C, T, H, W] and images [B, C, H, W], which are clips of one frame. The residual stream is float32
whatever the weights are, as in the authors' code. Clips may have any size of at least one patch and any number of
frames: the position embeddings are resized in space and in time. Masked pretraining is left out.
"""
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, global_pool_nlc
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model, update_model_input_size
from vmamba.layers import PatchEmbed, RMSNorm, VideoMixer
from vmamba.scans import video_schedule

from ._cfg import classifier_cfg
from ._checkpoint import load_released, open_envelope, require_fit
from ._tokens import TokenBackbone, build_tokens, drop_path_rates, resample_pos_embed, stack_paths
from .vim import BOTH_PATHS

__all__ = ["VideoMamba"]


def resample_spatial(pos_embed: Tensor, new_size: tuple[int, int], old_size: tuple[int, int]) -> Tensor:
    """Resize a position embedding [1, 1 + H * W, C] to another grid of patches, but for the class token's in front."""
    patches = resample_pos_embed(pos_embed[:, 1:], new_size, old_size, False)
    return torch.cat([pos_embed[:, :1], patches], dim=1)


class TemporalEmbedding(nn.Module):
    """A learned vector for each frame, zero at first.

    Args:
        frames: Frames that there are vectors for.
        dim: Channels C.
    """

    def __init__(self, frames: int, dim: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, frames, dim, device=device, dtype=dtype))

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, frames: int) -> Tensor:
        """Vectors for another number of frames, resized linearly in time: ``[1, frames, C]``."""
        return F.interpolate(self.weight.float().transpose(1, 2), size=frames, mode="linear").transpose(1, 2)


class VideoMambaBlock(nn.Module):
    """Pre-norm residual block on a stream in float32 or wider; ``[B, 1 + T * P, C]`` both ways."""

    def __init__(
            self, dim: int, d_state: int, scan: str, drop_path: float, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = RMSNorm(dim, **dd)
        self.mixer = VideoMixer(dim, scan, d_state=d_state, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, T: int, P: int) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x), T))


class VideoMamba(TokenBackbone):
    """VideoMamba classifier and backbone.

    Args:
        img_size: Side, or (height, width), of the frames that the position embedding is for.
        num_frames: Frames that the temporal embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "token" (the class token), "avg", "max" or "avgmax" of the patches, or "" for none.
        patch_size: Side of a patch in pixels.
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        scan: Name of an order of clips that walks both ways, see :data:`vmamba.scans.VIDEO_SCANS`, or of a mixture over
            the blocks, see :data:`vmamba.scans.VIDEO_SCHEDULES`; released weights are for "spatial_first_bidi".
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log``, as the authors' recipe does.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            num_frames: int = 8,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "token",
            patch_size: int = 16,
            embed_dim: int = 192,
            depth: int = 24,
            d_state: int = 16,
            scan: str = "spatial_first_bidi",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            PatchEmbed(in_chans, embed_dim, patch_size, patch_size, **dd),
            [VideoMambaBlock(embed_dim, d_state, order, rate, **dd) for order, rate in zip(
                video_schedule(scan, depth), drop_path_rates(drop_path_rate, depth), strict=True)],
            RMSNorm(embed_dim, **dd),
            embed_dim, True, img_size, in_chans, num_classes, global_pool, drop_rate, decay_ssm, wide_stream=True, **dd)
        self.temporal_embed = TemporalEmbedding(num_frames, embed_dim, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released ``.pth``; see :func:`vmamba.models._checkpoint.load_released`."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Embeddings, and state-space parameters that timm's rule for vectors does not see."""
        return {*super().no_weight_decay(), "temporal_embed.weight"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {**super().group_matcher(coarse), "stem": r"^cls_token|^pos_embed|^temporal_embed|^patch_embed"}

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Make the position embedding one for frames of another size, by resampling it."""
        grid = self._grid_of(img_size)
        resized = resample_spatial(self.pos_embed.detach(), grid, self.grid_size)
        self.pos_embed = nn.Parameter(resized.clone(), requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid
        update_model_input_size(self, img_size)

    def embed(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Clips [B, C, T, H, W] or images [B, C, H, W] -> tokens [B, 1 + T * P, C], class token first, T and P."""
        B = x.shape[0]
        x = x.reshape(B, x.shape[1], -1, x.shape[-2], x.shape[-1]).transpose(1, 2)
        T = x.shape[1]
        x = self.patch_embed(x.flatten(0, 1))
        H, W = x.shape[1], x.shape[2]
        pos_embed = resample_spatial(self.pos_embed, (H, W), self.grid_size)
        # float32 by type promotion, because a traced graph cannot ask for a dtype
        pos_embed = pos_embed + pos_embed.new_zeros(1, dtype=torch.float32)
        x = x.reshape(B, T, H * W, self.embed_dim) + pos_embed[:, 1:].unsqueeze(1)
        x = x + self.temporal_embed(T).unsqueeze(2)
        token = pos_embed[:, :1]
        if self.cls_token is not None:  # always so, which TorchScript and mypy cannot know
            token = token + self.cls_token
        return torch.cat([token.expand(B, -1, -1), x.flatten(1, 2)], dim=1), T, H * W

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            return_prefix_tokens: bool = False,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = "NCHW",
            intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Feature maps after blocks; arguments as of the other token families.

        Maps are [B, C, H, W] for images and [B, C, T, H, W] for clips ("NCHW"), or [B, T * P, C] ("NLC").
        """
        found = super().forward_intermediates(
            x, indices, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only)
        if output_fmt == "NLC":
            return found
        rows, columns = self.patch_embed.grid_size(x.shape[-2], x.shape[-1])

        def spatial(y: Tensor) -> Tensor:
            y = y.unflatten(3, (rows, columns))
            return y.squeeze(2) if x.ndim == 4 else y

        maps: list[Any] = cast("list[Any]", found if intermediates_only else found[1])
        shaped = [(spatial(y[0]), y[1]) if isinstance(y, tuple) else spatial(y) for y in maps]
        return shaped if intermediates_only else (found[0], shaped)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, 1 + L, C] -> patches and the class token [B, 1, C]."""
        return x[:, 1:], x[:, :1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens [B, 1 + L, C] -> logits [B, num_classes]."""
        if self.global_pool != "":
            x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VideoMamba) -> dict[str, Tensor]:
    """Bring an official VideoMamba checkpoint to this implementation's names and shapes; our own pass unchanged.

    Takes image and video models: without a temporal embedding it is zero. Position embeddings for another grid are
    resized around the class token's, temporal ones for other numbers of frames linearly.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("blocks.") for k in state):
        renames = (("layers.", "blocks."), ("norm_f.", "norm."), ("temporal_pos_embedding", "temporal_embed.weight"))
        for old, new in renames:
            state = {re.sub(f"^{re.escape(old)}", new, k): v for k, v in state.items()}
        state = stack_paths(state, BOTH_PATHS)
        state.setdefault("temporal_embed.weight", torch.zeros_like(model.temporal_embed.weight, device="cpu"))
    weight = state.get("patch_embed.proj.weight")
    if weight is not None and weight.ndim == 5 and weight.shape[2] == 1:
        state["patch_embed.proj.weight"] = weight.squeeze(2)  # patches of one frame
    state = _fit_embeddings(state, model)
    require_fit(state, model)
    return state


def _fit_embeddings(state: dict[str, Tensor], model: VideoMamba) -> dict[str, Tensor]:
    """Position embeddings for the model's grid and frames; what cannot be resized is refused with other misfits."""
    state = dict(state)
    table, own = state.get("pos_embed"), model.pos_embed
    if table is not None and table.ndim == 3 and table.shape != own.shape and table.shape[-1] == own.shape[-1]:
        side = int((table.shape[1] - 1) ** 0.5)
        if side * side + 1 == table.shape[1]:
            state["pos_embed"] = resample_spatial(table, model.grid_size, (side, side))
    frames, own = state.get("temporal_embed.weight"), model.temporal_embed.weight
    if frames is not None and frames.ndim == 3 and frames.shape != own.shape and frames.shape[-1] == own.shape[-1]:
        temporal = TemporalEmbedding(frames.shape[1], frames.shape[2])
        temporal.weight = nn.Parameter(frames, requires_grad=False)
        state["temporal_embed.weight"] = temporal(own.shape[1]).to(frames.dtype)
    return state


def _cfg(file: str = "", top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    released = {
        # the files carry the pickled arguments of the training, which load_pretrained() knows how to pass over
        "url": f"https://huggingface.co/OpenGVLab/VideoMamba/resolve/main/videomamba_{file}.pth", "custom_load": True,
        "origin_url": "https://github.com/OpenGVLab/VideoMamba",
    } if file else {}
    return classifier_cfg(
        top1, pool_size=None, first_conv="patch_embed.proj", classifier="head",
        paper_name="VideoMamba: State Space Model for Efficient Video Understanding", paper_ids="arXiv:2403.06977",
        **released, **kwargs)


# data set -> its name, classes, and frames and side of each published classifier of clips
_CLIPS = {
    "k400": ("Kinetics-400", 400, ((8, 224), (16, 224), (32, 224), (64, 224), (64, 384))),
    "ssv2": ("Something-Something-V2", 174, ((8, 224), (16, 224), (16, 288))),
    "breakfast": ("Breakfast", 10, ((32, 224), (64, 224))),
    "coin": ("COIN", 180, ((32, 224), (64, 224))),
}
# fine-tuned after masked pretraining, for which the authors link the weights of these only
_MASKED = {
    "k400": ("Kinetics-400", 400, ((8, 224), (32, 224), (64, 224), (64, 384))),
    "ssv2": ("Something-Something-V2", 174, ((8, 224), (16, 288))),
    "breakfast": ("Breakfast", 10, ((32, 224), (64, 224))),
    "coin": ("COIN", 180, ((32, 224), (64, 224))),
}
# top-1 in percent that the authors publish for those, in their order
_TINY_TOP1 = ((76.9, 78.1, 78.8, 79.6, 80.3), (65.1, 66.0, 66.2), (94.3, 94.3), (86.2, 87.0))
_SMALL_TOP1 = ((79.3, 80.8, 81.5, 81.8, 82.7), (66.6, 67.7, 68.1), (95.3, 97.4), (88.4, 88.7))
_MIDDLE_TOP1 = ((80.6, 81.9, 82.4, 82.8, 83.3), (67.3, 68.3, 68.4), (94.8, 95.8), (88.3, 89.5))
_MASKED_TOP1 = ((82.0, 83.9, 84.3, 85.0), (70.2, 71.4), (97.9, 96.9), (89.6, 90.4))


def _image_cfgs(name: str, letter: str, top1: tuple[float, float, float]) -> dict[str, Any]:
    """Configurations of the image classifiers of one size, published at 224, 448 and 576 pixels."""
    sizes = {224: "res224", 448: "res224to448", 576: "res224to448to576"}
    return {
        f"{name}.in1k" + ("" if side == 224 else f"_{side}"): _cfg(
            f"{letter}16_in1k_{end}", accuracy, input_size=(3, side, side))
        for (side, end), accuracy in zip(sizes.items(), top1, strict=True)}


def _video_cfgs(name: str, letter: str, top1: tuple[tuple[float, ...], ...], masked: bool = False) -> dict[str, Any]:
    """Configurations of the video classifiers of one size; build them with ``num_frames`` of their tag."""
    way, part = ("_mask", "_mask_ft") if masked else ("", "")
    cfgs = {}
    for (data, (title, classes, sizes)), row in zip((_MASKED if masked else _CLIPS).items(), top1, strict=True):
        for (frames, side), accuracy in zip(sizes, row, strict=True):
            file = f"{letter}16_{data}{part}_f{frames}_res224" + ("" if side == 224 else f"to{side}")
            cfgs[f"{name}.{data}{way}_f{frames}" + ("" if side == 224 else f"_{side}")] = {
                **_cfg(file, notes=(f"{title} top-1 {accuracy} % (published)",)),
                "num_classes": classes, "input_size": (3, side, side)}
    return cfgs


default_cfgs = generate_default_cfgs({
    **_image_cfgs("videomamba_tiny", "t", (76.9, 79.3, 79.6)), **_video_cfgs("videomamba_tiny", "t", _TINY_TOP1),
    **_image_cfgs("videomamba_small", "s", (81.2, 83.2, 83.5)), **_video_cfgs("videomamba_small", "s", _SMALL_TOP1),
    **_image_cfgs("videomamba_middle", "m", (82.8, 83.8, 84.0)), **_video_cfgs("videomamba_middle", "m", _MIDDLE_TOP1),
    **_video_cfgs("videomamba_middle", "m", _MASKED_TOP1, masked=True),
    "videomamba_base.untrained": _cfg(),
    "test_videomamba.untrained": _cfg(input_size=(3, 96, 96)),
})


def _create_videomamba(variant: str, pretrained: bool, model_args: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    return build_tokens(VideoMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def videomamba_tiny(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-Ti: 7.0 M parameters, 76.9 % ImageNet-1K top-1 (published)."""
    return _create_videomamba("videomamba_tiny", pretrained, {"embed_dim": 192}, kwargs)


@register_model
def videomamba_small(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-S: 26 M parameters, 81.2 % ImageNet-1K top-1 (published)."""
    return _create_videomamba("videomamba_small", pretrained, {"embed_dim": 384}, kwargs)


@register_model
def videomamba_middle(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-M, distilled: 74 M parameters, 82.8 % ImageNet-1K top-1 (published)."""
    return _create_videomamba("videomamba_middle", pretrained, {"embed_dim": 576, "depth": 32}, kwargs)


@register_model
def videomamba_base(pretrained: bool = False, **kwargs: Any) -> VideoMamba:
    """VideoMamba-B: 98 M parameters; the authors dropped it because it overfits, and link no weights."""
    return _create_videomamba("videomamba_base", pretrained, {"embed_dim": 768}, kwargs)


@register_model
def test_videomamba(pretrained: bool = False, **kwargs: Any) -> VideoMamba:  # noqa: PT028  (a model, not a test)
    """A minimal VideoMamba for tests."""
    model_args = {"img_size": 96, "num_frames": 4, "embed_dim": 48, "depth": 3, "d_state": 4}
    return _create_videomamba("test_videomamba", pretrained, model_args, kwargs)
