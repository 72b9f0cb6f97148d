"""Res-VMamba: VMamba's first release with a shortcut around each stage, for fine-grained images of food.

Paper: Chen et al., "Res-VMamba: Fine-Grained Food Category Visual Classification Using Selective State Space Models
with Deep Residual Learning", PLoS ONE 20(5), arXiv:2402.15761.
Origin: https://github.com/ChiShengChen/ResVMamba (no licence stated: look at their terms before use). This
implementation is our own, written from a description.

The published code makes the projections of its shortcuts anew, with random weights, in every forward pass: they are
neither trained nor stored, and no result of it can be reproduced. Here they are parameters like any other. A published
checkpoint has none, so it loads with 241 classes and ``residual="none"``, which is ``vmamba_small_v0``.
"""
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model, register_model_deprecations

from ._cfg import classifier_cfg
from ._checkpoint import open_envelope
from ._hierarchical import build_hierarchical, doubling
from .vmamba import VMamba
from .vmamba import checkpoint_filter_fn as vmamba_filter_fn

__all__ = ["ResVMamba"]

RESIDUALS = ("stage", "stem", "none")


class ResVMamba(VMamba):
    """Res-VMamba classifier and backbone.

    Args:
        residual: "stage", as in the published code: what enters a stage, at half the size, is added to what enters the
            next. "stem", as in the paper's figure: the stem's map, at the size of each, is added to the maps of all
            stages but the last. Maps shrink by 2x2 maxima and widen by a learned projection. "none" for no shortcut.
        kwargs: Arguments of :class:`vmamba.models.vmamba.VMamba`.

    Raises:
        ValueError: ``residual`` is neither.
    """

    def __init__(self, residual: str = "stage", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if residual not in RESIDUALS:
            raise ValueError(f"residual is {residual!r}, but needs one of {', '.join(map(repr, RESIDUALS))}")
        self.residual = residual
        dims = [info["num_chs"] for info in self.feature_info]
        used = {"stage": len(dims) - 1, "stem": len(dims) - 2, "none": 0}[residual]  # others would never be trained
        dd: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        self.res_proj = nn.ModuleList(
            nn.Linear(dims[i], dims[i + 1], **dd) if i < used else nn.Identity() for i in range(len(dims)))
        self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        projections = r"^res_proj\.(\d+)"
        blocks = rf"{groups['blocks']}|{projections}" if coarse else [*groups["blocks"], (projections, (99998,))]
        return {**groups, "blocks": blocks}

    def forward_stages(self, x: Tensor, count: int) -> list[Tensor]:
        maps: list[Tensor] = []
        shortcut = x
        for stage, project in zip(self.stages, self.res_proj, strict=False):  # pruned models have fewer stages
            i = len(maps)
            if i < count:
                x = stage.downsample(x)  # type: ignore[operator]
                if self.residual == "stage":
                    x = x + shortcut if i > 0 else x
                    shortcut = x
                x = stage.run_blocks(x)  # type: ignore[operator]
                if self.residual == "stem" and i < 3:
                    x = x + shortcut
                maps.append(x)
                if self.residual != "none":
                    shortcut = project(_halve(shortcut))
        return maps

    def prune_intermediate_layers(
            self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True,
    ) -> list[int]:
        """Drop what the asked-for feature maps do not need; returns the kept indices."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        last = len(self.stages) - 1
        self.res_proj = nn.ModuleList([*self.res_proj[:last], nn.Identity()])
        return kept

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> normalised map [B, H / 32, W / 32, C]."""
        return self.norm(self.forward_stages(self.stem(x), len(self.stages))[-1])


def _halve(x: Tensor) -> Tensor:
    """Maxima of 2x2 neighbours, ``[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C]``."""
    B, H, W, C = x.shape
    rows, columns = (H + 1) // 2, (W + 1) // 2
    # not max_pool2d, whose ceil_mode cannot be exported for dynamic sizes
    x = F.pad(x, (0, 0, 0, 2 * columns - W, 0, 2 * rows - H), value=float("-inf"))
    return x.reshape(B, rows, 2, columns, 2, C).amax(dim=(2, 4))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint with VMamba's official names to this implementation's, as VMamba's own filter does.

    Raises:
        RuntimeError: The checkpoint does not fit, or the model has shortcuts and the checkpoint has no projections, as
            those that were published.
    """
    state = open_envelope(state_dict)
    needed = any(k.startswith("res_proj.") for k in model.state_dict())
    if needed and not any(k.startswith("res_proj.") for k in state):
        raise RuntimeError(
            "the checkpoint has no res_proj and nothing was loaded: the published code never stored its random "
            "projections; load the file with residual='none' and num_classes=241, which is vmamba_small_v0")
    return vmamba_filter_fn(state, model)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "paper_name": "Res-VMamba: Fine-Grained Food Category Visual Classification Using Selective State Space Models "
                      "with Deep Residual Learning",
        "paper_ids": "arXiv:2402.15761", "license": "other", **kwargs})


default_cfgs = generate_default_cfgs({
    "res_vmamba_tiny.untrained": _cfg(),
    "res_vmamba_small.untrained": _cfg(
        origin_url="https://github.com/ChiShengChen/ResVMamba",
        notes=("81.70 % top-1 on CNFOOD-241 were published, with random projections that were never trained",)),
    "res_vmamba_base.untrained": _cfg(),
    "test_res_vmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> ResVMamba:
    v0 = {"d_state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "conv_bias": True, "gate": True, "patch_stem": True}
    return build_hierarchical(ResVMamba, variant, pretrained, checkpoint_filter_fn, {**v0, **model_args}, kwargs)


@register_model
def res_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> ResVMamba:
    """Res-VMamba on the tiny trunk: 23.3 M parameters; not published."""
    return _create("res_vmamba_tiny", pretrained, {"dims": doubling(96), "depths": (2, 2, 9, 2)}, **kwargs)


@register_model
def res_vmamba_small(pretrained: bool = False, **kwargs: Any) -> ResVMamba:
    """Res-VMamba-S: 44.8 M parameters."""
    return _create("res_vmamba_small", pretrained, {"dims": doubling(96), "depths": (2, 2, 27, 2)}, **kwargs)


@register_model
def res_vmamba_base(pretrained: bool = False, **kwargs: Any) -> ResVMamba:
    """Res-VMamba on the base trunk: 76.9 M parameters; not published."""
    return _create("res_vmamba_base", pretrained, {"dims": doubling(128), "depths": (2, 2, 27, 2)}, **kwargs)


@register_model
def test_res_vmamba(pretrained: bool = False, **kwargs: Any) -> ResVMamba:  # noqa: PT028  (a model, not a test)
    """A minimal Res-VMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1), "d_state": 4}
    return _create("test_res_vmamba", pretrained, model_args, **kwargs)


# the former names
register_model_deprecations(__name__, {
    "resvmamba_tiny": "res_vmamba_tiny",
    "resvmamba_small": "res_vmamba_small",
    "resvmamba_base": "res_vmamba_base",
})
