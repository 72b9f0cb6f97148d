"""LocalVMamba: VMamba's first release with other scans in every block, over windows as well as rows and columns.

Paper: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", arXiv:2403.09338.
Origin of the weights: https://github.com/hunto/LocalMamba (Apache-2.0). This implementation is our own.

The authors searched four directions for each block; the outputs of a block's directions are weighed by channel
attention. Where height and width differ, the authors' code puts the outputs of column scans back at wrong positions;
here they go where they came from, so results differ from theirs on such maps only. Any image size works: maps that
windows do not divide are padded with zero tokens, which the scan passes through.
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import LayerNorm, LocalSS2D, PatchMerging, PatchStem

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["LocalVMamba"]

NORM_EPS = 1e-5

# the directions that the authors' search found, block by block, as names of scan orders
TINY_SCANS = (
    "h+h_flip+w7+w7_flip", "h_flip+v_flip+w2+w2_flip",
    "h_flip+v_flip+w2_flip+w7", "h_flip+v+v_flip+w2",
    "h+h_flip+v_flip+w2_flip", "h_flip+v_flip+w2+w2_flip", "h+w2_flip+w7+w7_flip", "h+h_flip+v+v_flip",
    "h+v_flip+w7+w7_flip", "h_flip+v+w2+w7_flip", "v+v_flip+w2+w7_flip", "h+h_flip+v_flip+w2_flip",
    "v_flip+w2_flip+w7+w7_flip",
    "h_flip+v_flip+w2_flip+w7_flip", "h_flip+v+w7+w7_flip",
)
SMALL_SCANS = (
    "h+v+v_flip+w7_flip", "h+h_flip+v+w7",
    "h_flip+v+v_flip+w7", "h_flip+v+w2_flip+w7",
    "h_flip+v+w2_flip+w7", "h_flip+v_flip+w2+w7_flip", "h_flip+v+v_flip+w7", "h+v+v_flip+w7", "h+v+v_flip+w7",
    "h+v+v_flip+w7_flip", "h+h_flip+v+v_flip", "h+v+v_flip+w2", "v+v_flip+w2_flip+w7", "h+h_flip+v+w2",
    "h_flip+v+v_flip+w7_flip", "h+h_flip+v+v_flip", "h+v+v_flip+w7_flip", "h+v+v_flip+w7_flip", "h+h_flip+v_flip+w7",
    "h_flip+v_flip+w2_flip+w7", "h_flip+v+v_flip+w7_flip", "v+v_flip+w7+w7_flip", "h+v+v_flip+w7_flip",
    "h_flip+v+v_flip+w2", "h+v+v_flip+w2_flip", "h+h_flip+v+w7", "h+h_flip+w7+w7_flip", "h+v_flip+w2+w2_flip",
    "h+v_flip+w2+w7", "h+v+v_flip+w7_flip", "h_flip+v+w2_flip+w7",
    "h_flip+v_flip+w7+w7_flip", "h+v+w7+w7_flip",
)


class LocalVMambaBlock(nn.Module):
    """Pre-norm residual block without an MLP; ``[B, H, W, C] -> [B, H, W, C]``."""

    def __init__(
            self, dim: int, d_state: int, scan: str, drop_path: float, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = LocalSS2D(dim, scan, NORM_EPS, d_state=d_state, ssm_ratio=2.0, conv_bias=True, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm1(x)))


class LocalVMamba(HierarchicalBackbone):
    """LocalVMamba classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        d_state: States N per channel.
        scans: Scan order of each block, all stages in turn; or one name for all.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``, as the authors' recipe does.

    Raises:
        ValueError: There are fewer or more ``scans`` than blocks, or one has no such name.
    """

    default_init = (".x_proj", ".attention.reduce", ".attention.expand")

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (96, 192, 384, 768),
            depths: tuple[int, ...] = (2, 2, 9, 2),
            d_state: int = 16,
            scans: str | Sequence[str] = "local4",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        scans = [scans] * sum(depths) if isinstance(scans, str) else scans
        if len(scans) != sum(depths):
            raise ValueError(f"scans has {len(scans)} names, but needs one for each of the {sum(depths)} blocks")
        names = iter(scans)
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            downsample = PatchMerging(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity()
            stages.append(Stage(
                downsample, [LocalVMambaBlock(dims[i], d_state, next(names), rate, **dd) for rate in rates]))
        super().__init__(
            PatchStem(in_chans, dims[0], NORM_EPS, **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"\.multi_scan\.attn\.", ".attention."),
    (r"\.global_reduce\.", ".reduce."),
    (r"\.channel_select\.", ".expand."),
)


def _native_name(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return vmamba_native_name(key, patch_stem=True)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring an official LocalVMamba checkpoint to this implementation's names, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    return fit_official(state_dict, model, _native_name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(
        paper_name="LocalMamba: Visual State Space Model with Windowed Selective Scan", paper_ids="arXiv:2403.09338",
        **kwargs)


_ORIGIN = "https://github.com/hunto/LocalMamba"

default_cfgs = generate_default_cfgs({
    # the authors published the accuracy of the tiny model and have not released its weights
    "localvmamba_tiny.in1k": _cfg(
        origin_url=_ORIGIN, notes=("ImageNet-1K top-1 82.7 % (published)", "weights not released")),
    "localvmamba_small.in1k": _cfg(
        top1=83.7, origin_url=_ORIGIN, url=f"{_ORIGIN}/releases/download/v1.0.0/local_vssm_small.ckpt",
        custom_load=True),
    "test_localvmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> LocalVMamba:
    return build_hierarchical(LocalVMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T: 25.5 M parameters, 82.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 9, 2), "scans": TINY_SCANS}
    return _create("localvmamba_tiny", pretrained, model_args, **kwargs)


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S: 49.7 M parameters, 83.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 27, 2), "scans": SMALL_SCANS}
    return _create("localvmamba_small", pretrained, model_args, **kwargs)


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:  # noqa: PT028  (a model, not a test)
    """A minimal LocalVMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 1, 2, 1), "d_state": 4}
    return _create("test_localvmamba", pretrained, model_args, **kwargs)
