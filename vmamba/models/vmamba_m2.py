"""VMamba on Mamba-2: scans with one decay rate for each head and 64 states.

Papers: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv:2401.10166, for trunk, stem and
downsampling, which are those of its second release; Dao and Gu, "Transformers are SSMs", ICML 2024, for the scan,
arXiv:2405.21060. Origin: https://github.com/MzeroMiko/VMamba (MIT), whose authors never trained it. This implementation
is our own.
"""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import SSD2D, ConvDownsample, ConvStem, MixerBlock

from ._cfg import classifier_cfg
from ._checkpoint import fit_official
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

__all__ = ["VMambaM2"]

NORM_EPS = 1e-5


class VMambaM2(HierarchicalBackbone):
    """VMamba-M2 classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages, multiples of 16.
        depths: Blocks of the four stages.
        d_state: States N per channel.
        mlp_ratio: Hidden channels of the MLP as a multiple of the block's.
        scan: Name of a scan order over the map, see :func:`vmamba.scans.scan_order`.
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
            depths: tuple[int, ...] = (2, 2, 4, 2),
            d_state: int = 64,
            mlp_ratio: float = 4.0,
            scan: str = "cross",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = [
                MixerBlock(
                    dims[i], SSD2D(dims[i], d_state, scan, NORM_EPS, **dd), mlp_ratio, rate, norm_eps=NORM_EPS, **dd)
                for rate in rates]
            downsample = ConvDownsample(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity()
            stages.append(Stage(downsample, blocks))
        super().__init__(
            ConvStem(in_chans, dims[0], NORM_EPS, **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, decay_ssm=decay_ssm, **dd)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint with VMamba's official names to this implementation's, as ``fit_official`` says.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    return fit_official(state_dict, model, lambda key: vmamba_native_name(key, patch_stem=False))


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "first_conv": "stem.conv1", "paper_name": "VMamba: Visual State Space Model", "paper_ids": "arXiv:2401.10166",
        "origin_url": "https://github.com/MzeroMiko/VMamba", **kwargs})


default_cfgs = generate_default_cfgs({
    "vmamba_tiny_m2.untrained": _cfg(),
    "vmamba_small_m2.untrained": _cfg(),
    "vmamba_base_m2.untrained": _cfg(),
    "test_vmamba_m2.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> VMambaM2:
    return build_hierarchical(VMambaM2, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def vmamba_tiny_m2(pretrained: bool = False, **kwargs: Any) -> VMambaM2:
    """VMamba-T on Mamba-2: 25.3 M parameters; never trained by its authors."""
    return _create("vmamba_tiny_m2", pretrained, {"dims": doubling(96), "depths": (2, 2, 4, 2)}, **kwargs)


@register_model
def vmamba_small_m2(pretrained: bool = False, **kwargs: Any) -> VMambaM2:
    """VMamba-S on Mamba-2: 39.1 M parameters; never trained by its authors."""
    return _create("vmamba_small_m2", pretrained, {"dims": doubling(96), "depths": (2, 2, 12, 2)}, **kwargs)


@register_model
def vmamba_base_m2(pretrained: bool = False, **kwargs: Any) -> VMambaM2:
    """VMamba-B on Mamba-2: 67.5 M parameters; never trained by its authors."""
    return _create("vmamba_base_m2", pretrained, {"dims": doubling(128), "depths": (2, 2, 12, 2)}, **kwargs)


@register_model
def test_vmamba_m2(pretrained: bool = False, **kwargs: Any) -> VMambaM2:  # noqa: PT028  (a model, not a test)
    """A minimal VMamba on Mamba-2 for tests."""
    model_args = {"dims": (16, 32, 32, 48), "depths": (1, 2, 2, 1), "d_state": 8}
    return _create("test_vmamba_m2", pretrained, model_args, **kwargs)
