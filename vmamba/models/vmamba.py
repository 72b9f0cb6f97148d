"""VMamba: hierarchical backbones on the 2-D selective scan.

Paper: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv:2401.10166.
Origin of the weights: https://github.com/MzeroMiko/VMamba (MIT). This implementation is our own.

Names follow the authors': ``s`` is the ratio of inner to outer channels of the scan, ``l`` the number of blocks of the
third stage; ``v0`` is the first release (gated, 16 states, no MLP). Maps are channels-last throughout and any image
size works.
"""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm,
    Mlp,
    calculate_drop_path_rates,
    get_device_dtype,
    trunc_normal_,
)
from torch import Tensor, nn

from vmamba._timm import (
    build_model_with_cfg,
    checkpoint_seq,
    feature_take_indices,
    generate_default_cfgs,
    load_pretrained,
    register_model,
)
from vmamba.layers import SS2D, ConvDownsample, ConvStem, PatchMerging, PatchStem

from ._checkpoint import AllOrNothing, linear_weights, open_envelope, read_pickles_safely, require_fit
from ._safe_load import load_safely

__all__ = ["VMamba"]

NORM_EPS = 1e-5


class VMambaBlock(nn.Module):
    """Pre-norm residual block: SS2D, then an MLP where the model has one; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(
            self, dim: int, mlp_ratio: float, drop_path: float, ssm: Mapping[str, Any], device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = SS2D(dim, norm_eps=NORM_EPS, **ssm, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.has_mlp = mlp_ratio > 0
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, **dd) if self.has_mlp else nn.Identity()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if self.has_mlp else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 and self.has_mlp else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        if self.has_mlp:
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


class VMambaStage(nn.Module):
    """Downsampling (none in the first stage), then blocks at one resolution."""

    def __init__(
            self, downsample: nn.Module, dim: int, drop_path: list[float], mlp_ratio: float, ssm: Mapping[str, Any],
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(
            *(VMambaBlock(dim, mlp_ratio, rate, ssm, device=device, dtype=dtype) for rate in drop_path))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class VMamba(AllOrNothing):
    """VMamba classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        d_state: States N per channel.
        ssm_ratio: Inner channels of the scan as a multiple of the block's.
        mlp_ratio: Hidden channels of the MLP as a multiple of the block's; 0 for no MLP.
        conv_bias: Bias of the scan's depthwise convolution.
        gate: Multiply the scan by ``silu(z)``, z a second branch.
        patch_stem: Stem and downsampling of the first release (4x4 patches, patch merging) instead of convolutions.
        scan: Name of the scan order, see :func:`vmamba.scans.list_scans`.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``, as the authors' recipe does.
    """

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (96, 192, 384, 768),
            depths: tuple[int, ...] = (2, 2, 8, 2),
            d_state: int = 1,
            ssm_ratio: float = 1.0,
            mlp_ratio: float = 4.0,
            conv_bias: bool = False,
            gate: bool = False,
            patch_stem: bool = False,
            scan: str = "cross",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans = num_classes, in_chans
        self.output_fmt = "NHWC"
        self.decay_ssm = decay_ssm
        ssm = {"d_state": d_state, "ssm_ratio": ssm_ratio, "conv_bias": conv_bias, "gate": gate, "scan": scan}

        stem = PatchStem if patch_stem else ConvStem
        downsample = PatchMerging if patch_stem else ConvDownsample
        self.stem = stem(in_chans, dims[0], NORM_EPS, **dd)
        rates = cast("list[float]", calculate_drop_path_rates(drop_path_rate, sum(depths)))
        self.feature_info = []
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            reduce = downsample(dims[i - 1], dim, NORM_EPS, **dd) if i > 0 else nn.Identity()
            first = sum(depths[:i])
            stages.append(VMambaStage(reduce, dim, rates[first:first + depth], mlp_ratio, ssm, **dd))
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2 ** i, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.num_features = self.head_hidden_size = dims[-1]
        self.norm: nn.Module = LayerNorm(self.num_features, eps=NORM_EPS, **dd)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd)
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def init_weights(self, needs_reset: bool = True) -> None:
        """Initialise as the authors do: linear layers truncated normal, everything else as its module resets itself.

        Args:
            needs_reset: Also reset the other modules, e.g. after ``to_empty()``.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if needs_reset and callable(reset):
                reset()
        for name, module in self.named_modules():
            # The projection to step sizes, B and C keeps the default of nn.Linear.
            if isinstance(module, nn.Linear) and not name.endswith(".x_proj"):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay beyond timm's rule that exempts vectors and biases."""
        exempt = (".mixer.D",) if self.decay_ssm else (".mixer.D", ".mixer.A_log", ".mixer.dt_bias")
        return {name for name, _ in self.named_parameters() if name.endswith(exempt)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            cast(VMambaStage, stage).grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released ``.pth``, whose pickled configuration is replaced by inert stand-ins.

        Raises:
            ValueError: The file cannot be read or names objects that are not known to be harmless.
            RuntimeError: The weights do not fit; nothing is loaded then.
        """
        content, _ = load_safely(Path(checkpoint_path))
        cfg = dict(cast("dict[str, Any]", self.pretrained_cfg))
        cfg |= {"state_dict": open_envelope(content), "custom_load": False}
        load_pretrained(
            self, cfg, num_classes=self.num_classes, in_chans=self.in_chans, filter_fn=checkpoint_filter_fn)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = "NCHW",
            intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of the stages.

        Args:
            x: Images [B, in_chans, H, W].
            indices: Last n stages if int, all if None, those listed otherwise.
            norm: Apply the final norm to the last stage's map.
            stop_early: Do not run stages after the last one asked for.
            output_fmt: "NCHW" (contiguous) or "NHWC".
            intermediates_only: Return only the list of maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt!r}, but needs 'NCHW' or 'NHWC'")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates = []
        x = self.stem(x)
        stages = cast(nn.Sequential, self.stages[:max_index + 1] if stop_early else self.stages)
        for i, stage in enumerate(stages):
            x = stage(x)
            if i in take_indices:
                y = self.norm(x) if norm and i == last else x
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if len(stages) - 1 == last else x), intermediates

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Drop what the asked-for feature maps do not need; returns the kept indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        ends_early = max_index < len(self.stages) - 1
        if prune_norm or ends_early:
            self.norm = nn.Identity()  # sized for, and applied to, the last stage only
        self.stages = cast(nn.Sequential, self.stages[:max_index + 1])
        if ends_early:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or ends_early:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> normalised map [B, ceil(H / 32), ceil(W / 32), C]."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


_RENAMES = (
    # first release
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
    # one-file rewrite
    (r"\.op\.x_proj\.weight$", ".op.x_proj_weight"),
    (r"\.op\.dt_projs\.(weight|bias)$", r".op.dt_projs_\1"),
    # ours
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
    (r"^(layers\.\d+)\.blocks\.(\d+)\.norm\.", r"\1.blocks.\2.norm1."),
    (r"\.op\.x_proj_weight$", ".op.x_proj.weight"),
    (r"\.op\.dt_projs_(weight|bias)$", r".op.dt_\1"),
    (r"\.op\.A_logs$", ".op.A_log"),
    (r"\.op\.Ds$", ".op.D"),
    (r"\.op\.conv2d\.", ".op.conv."),
    (r"\.op\.", ".mixer."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
)


def _native_name(key: str, patch_stem: bool) -> str:
    """Our name of an official parameter, whichever release it comes from."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    stem = {"0": "conv", "2": "norm"} if patch_stem else {"0": "conv1", "2": "norm1", "5": "conv2", "7": "norm2"}
    key = re.sub(r"^patch_embed\.(\d+)", lambda m: f"stem.{stem.get(m[1], m[1])}", key)
    # official downsampling ends a stage, ours begins the next
    match = re.match(r"^layers\.(\d+)\.downsample\.(\w+)\.", key)
    if match:
        part = {"1": "conv", "3": "norm"}.get(match[2], match[2])
        key = f"stages.{int(match[1]) + 1}.downsample.{part}.{key[match.end():]}"
    return key


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any official VMamba release to this implementation's names and shapes.

    Takes training envelopes, both official layouts and their older names, 1x1-convolution weights, and checkpoints of
    detection or segmentation backbones, whose norms per output are left out. Our own names pass unchanged.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("stages.") for k in state):
        patch_stem = isinstance(model.stem, PatchStem)
        state = {_native_name(k, patch_stem): v for k, v in state.items()}
    backbone = {k: v for k, v in state.items() if not re.match(r"^outnorm\d\.", k)}
    is_backbone = len(backbone) < len(state)
    state = linear_weights(backbone, model)
    require_fit(state, model, optional=("norm.",) if is_backbone else ())
    return state


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    base = "https://github.com/MzeroMiko/VMamba/releases/download/"
    return {
        # released files carry a pickled configuration, which load_pretrained() knows how to pass over
        **({"url": base + file, "custom_load": True} if file else {"url": ""}),
        "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7),
        "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1", "classifier": "head.fc",
        "paper_name": "VMamba: Visual State Space Model", "paper_ids": "arXiv:2401.10166",
        "license": "mit" if file else "apache-2.0",
        "origin_url": "https://github.com/MzeroMiko/VMamba" if file else "",
        **kwargs,
    }


_S1L8 = "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"
_S2L15_SMALL = "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"
_S2L15_BASE = "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"

default_cfgs = generate_default_cfgs({
    "vmamba_tiny.in1k": _cfg(_S1L8),
    "vmamba_small.in1k": _cfg(_S2L15_SMALL),
    "vmamba_base.in1k": _cfg(_S2L15_BASE),
    "vmamba_tiny_s1l8.in1k": _cfg(_S1L8),
    "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
    "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
    "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
    "vmamba_small_s2l15.in1k": _cfg(_S2L15_SMALL),
    "vmamba_base_s2l15.in1k": _cfg(_S2L15_BASE),
    "vmamba_tiny_v0.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", first_conv="stem.conv"),
    "vmamba_small_v0.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", first_conv="stem.conv"),
    "vmamba_base_v0.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", first_conv="stem.conv"),
    "vmamba_nano.untrained": _cfg(),
    "test_vmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create_vmamba(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> VMamba:
    return build_model_with_cfg(
        VMamba, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        # the getter gives feature maps as NCHW, which detection and segmentation heads expect
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **read_pickles_safely({**model_args, **kwargs}),
    )


def _dims(width: int) -> tuple[int, ...]:
    return width, 2 * width, 4 * width, 8 * width


_V0 = {"d_state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "conv_bias": True, "gate": True, "patch_stem": True}


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T of the paper's main table, which is ``vmamba_tiny_s1l8``."""
    return _create_vmamba("vmamba_tiny", pretrained, {"dims": _dims(96), "depths": (2, 2, 8, 2)}, **kwargs)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S of the paper's main table, which is ``vmamba_small_s2l15``."""
    model_args = {"dims": _dims(96), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_small", pretrained, model_args, **kwargs)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B of the paper's main table, which is ``vmamba_base_s2l15``."""
    model_args = {"dims": _dims(128), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_base", pretrained, model_args, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s1l8]: 30.2 M parameters, 82.6 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_tiny_s1l8", pretrained, {"dims": _dims(96), "depths": (2, 2, 8, 2)}, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s1l20]: 49.0 M parameters, 83.3 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_small_s1l20", pretrained, {"dims": _dims(96), "depths": (2, 2, 20, 2)}, **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s1l20]: 86.6 M parameters, 83.8 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_base_s1l20", pretrained, {"dims": _dims(128), "depths": (2, 2, 20, 2)}, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s2l5]: 30.7 M parameters, 82.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(96), "depths": (2, 2, 5, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_tiny_s2l5", pretrained, model_args, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s2l15]: 50.1 M parameters, 83.6 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(96), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_small_s2l15", pretrained, model_args, **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s2l15]: 88.6 M parameters, 83.9 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(128), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_base_s2l15", pretrained, model_args, **kwargs)


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-T, the first release: 22.9 M parameters, 82.2 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(96), "depths": (2, 2, 9, 2), **_V0}
    return _create_vmamba("vmamba_tiny_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-S, the first release: 44.4 M parameters, 83.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(96), "depths": (2, 2, 27, 2), **_V0}
    return _create_vmamba("vmamba_small_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-B, the first release: 76.3 M parameters, 83.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": _dims(128), "depths": (2, 2, 27, 2), **_V0}
    return _create_vmamba("vmamba_base_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A small VMamba of our own for CPUs and small images; no published weights."""
    return _create_vmamba("vmamba_nano", pretrained, {"dims": _dims(32), "depths": (1, 1, 3, 1)}, **kwargs)


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:  # noqa: PT028  (a model, not a test)
    """A minimal VMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}
    return _create_vmamba("test_vmamba", pretrained, model_args, **kwargs)
