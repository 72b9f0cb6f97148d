"""MLLA (also MILA): Mamba's block around linear attention, whose position encodings stand in for the forget gate.

Paper: Han et al., "Demystify Mamba in Vision: A Linear Attention Perspective", NeurIPS 2024, arXiv:2405.16605.
Origin of the weights: https://github.com/LeapLabTHU/MLLA (MIT). This implementation is our own.

The authors' classifier takes square images of one size, their detectors any: those pad maps of odd size before
downsampling (``pad_odd``). Here any image size works either way; maps are channels-last throughout.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import CPEBlock, InvertedDownsample, MambaLinearAttention, ResidualStem

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released, open_envelope
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["MLLA"]

NORM_EPS = 1e-5


class MLLA(HierarchicalBackbone):
    """MLLA classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages, multiples of 4.
        depths: Blocks of the four stages.
        num_heads: Heads of the attention in the four stages.
        mlp_ratio: Hidden channels of the MLP as a multiple of the block's.
        pad_odd: Pad maps of odd size by zeros before downsampling, as the authors' detectors do.
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
            mlp_ratio: float = 4.0,
            pad_odd: bool = False,
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = [
                CPEBlock(dims[i], MambaLinearAttention(dims[i], num_heads[i], **dd), mlp_ratio, rate, NORM_EPS, **dd)
                for rate in rates]
            downsample = InvertedDownsample(dims[i - 1], dims[i], pad_odd, **dd) if i > 0 else nn.Identity()
            stages.append(Stage(downsample, blocks))
        super().__init__(
            ResidualStem(in_chans, dims[0], **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^patch_embed\.", "stem."),
    (r"^norm(\d)\.", r"outnorm\1."),
    (r"\.downsample\.conv\.0\.conv\.", ".downsample.expand."),
    (r"\.downsample\.conv\.1\.conv\.", ".downsample.depthwise."),
    (r"\.downsample\.conv\.2\.", ".downsample.project."),
    (r"\.act_proj\.", ".gate_proj."),
    (r"\.dwc\.", ".conv."),
    (r"(\.blocks\.\d+)\.(in_proj|gate_proj|conv|attn|out_proj)\.", r"\1.mixer.\2."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return vmamba_native_name(key, patch_stem=False)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official MLLA checkpoint to this implementation's names, as ``fit_official`` says.

    The angles of the position encoding, which official files hold for one image size, are left out.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = {k: v for k, v in open_envelope(state_dict).items() if not k.endswith(".rope.rotations")}
    return fit_official(state, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.conv1.conv",
        "paper_name": "Demystify Mamba in Vision: A Linear Attention Perspective", "paper_ids": "arXiv:2405.16605",
        **kwargs})


def _published(top1: float) -> dict[str, Any]:
    """The authors publish the weights on a drive whose addresses name no file, linked from their repository."""
    return _cfg(top1=top1, license="mit", origin_url="https://github.com/LeapLabTHU/MLLA")


default_cfgs = generate_default_cfgs({
    "mlla_tiny.in1k": _published(83.5),
    "mlla_small.in1k": _published(84.4),
    "mlla_base.in1k": _published(85.3),
    "test_mlla.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> MLLA:
    return build_hierarchical(MLLA, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def mlla_tiny(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-T: 24.4 M parameters, 83.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (2, 4, 8, 4), "num_heads": (2, 4, 8, 16)}
    return _create("mlla_tiny", pretrained, model_args, **kwargs)


@register_model
def mlla_small(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-S: 43.0 M parameters, 84.4 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(64), "depths": (3, 6, 21, 6), "num_heads": (2, 4, 8, 16)}
    return _create("mlla_small", pretrained, model_args, **kwargs)


@register_model
def mlla_base(pretrained: bool = False, **kwargs: Any) -> MLLA:
    """MLLA-B: 96.0 M parameters, 85.3 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (3, 6, 21, 6), "num_heads": (3, 6, 12, 24)}
    return _create("mlla_base", pretrained, model_args, **kwargs)


@register_model
def test_mlla(pretrained: bool = False, **kwargs: Any) -> MLLA:  # noqa: PT028  (a model, not a test)
    """A minimal MLLA for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4)}
    return _create("test_mlla", pretrained, model_args, **kwargs)
