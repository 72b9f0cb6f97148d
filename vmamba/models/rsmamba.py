"""RSMamba: a plain stack of Mamba mixers for remote sensing, each along three orders of the tokens with shared weights.

Paper: Chen et al., "RSMamba: Remote Sensing Image Classification with State Space Model", IEEE GRSL 2024,
arXiv:2403.19654. Origin of the weights: https://github.com/KyanChen/RSMamba (Apache-2.0). This implementation is our
own.

One path goes forwards, one backwards, one through a permutation. The authors draw that anew in every layer and forward
pass, at test time too, so their results differ from run to run; here each layer has a fixed one, or with
``shuffle="random"`` what torch's generator draws. Images may have any size: the position embedding is resized.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm
from torch import Tensor, nn

from vmamba._timm import checkpoint, generate_default_cfgs, register_model
from vmamba.layers import Conv2dNHWC, MultiPathMixer

from ._cfg import classifier_cfg
from ._checkpoint import linear_weights, load_released, open_envelope, require_fit
from ._tokens import TokenBackbone, build_tokens, drop_path_rates, fit_pos_embed

__all__ = ["RSMamba"]

NORM_EPS = 1e-6
SHUFFLES = ("fixed", "random")


class OverlappingPatches(nn.Module):
    """Patches by one convolution, ``[B, 3, H, W] -> [B, ceil(H / stride), ceil(W / stride), C]``.

    The image is padded by zeros at the bottom and right, so that the last patches fit.
    """

    def __init__(
            self, in_chans: int, dim: int, patch_size: int, stride: int, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.proj = Conv2dNHWC(in_chans, dim, patch_size, stride=stride, bias=False, device=device, dtype=dtype)

    @torch.jit.ignore
    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return -(-height // self.stride), -(-width // self.stride)

    def forward(self, x: Tensor) -> Tensor:
        _, _, H, W = x.shape
        bottom = (H + self.stride - 1) // self.stride * self.stride - self.stride + self.patch_size - H
        right = (W + self.stride - 1) // self.stride * self.stride - self.stride + self.patch_size - W
        x = F.pad(x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1), (0, 0, 0, right, 0, bottom))
        return self.proj(x)


class RSMambaBlock(nn.Module):
    """Residual block of one mixer along several paths; ``[B, L, C] -> [B, L, C]``.

    The norm before the mixer is the same in all blocks, so its weight and bias are arguments.
    """

    def __init__(
            self, dim: int, d_state: int, scan: str, gate: bool, random: bool, drop_path: float, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dim = dim
        self.mixer = MultiPathMixer(dim, scan, gate, random, d_state=d_state, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, H: int, W: int, weight: Tensor, bias: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(F.layer_norm(x, (self.dim,), weight, bias, 1e-6), H, W))


class RSMamba(TokenBackbone):
    """RSMamba classifier and backbone.

    Args:
        img_size: Side, or (height, width), of the images that the position embedding is for.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: "avg", "max" or "avgmax" of the tokens, or "" for none.
        patch_size: Side of a patch in pixels.
        stride: Pixels from one patch to the next.
        embed_dim: Channels.
        depth: Blocks.
        d_state: States N per channel.
        paths: 1 for the path forwards, 2 for that backwards as well, 3 for a shuffled one as well.
        gate: Weigh the paths by a softmax of their mean tokens; else take their mean.
        shuffle: Permutation of the third path: "fixed", of its own in each block, or "random", drawn in every forward
            pass by torch's generator (``torch.manual_seed``).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log``.

    Raises:
        ValueError: ``paths`` or ``shuffle`` is none of these.
    """

    def __init__(
            self,
            img_size: int | tuple[int, int] = 224,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            patch_size: int = 16,
            stride: int = 8,
            embed_dim: int = 192,
            depth: int = 24,
            d_state: int = 16,
            paths: int = 3,
            gate: bool = True,
            shuffle: str = "fixed",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        if paths not in (1, 2, 3):
            raise ValueError(f"paths is {paths}, but needs 1, 2 or 3")
        if shuffle not in SHUFFLES:
            raise ValueError(f"shuffle is {shuffle!r}, but needs one of {', '.join(map(repr, SHUFFLES))}")
        dd = {"device": device, "dtype": dtype}
        random = paths == 3 and shuffle == "random"
        blocks = []
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            scan = "+".join(("h", "h_flip", f"random_seed{i}")[:2 if random else paths])
            blocks.append(RSMambaBlock(embed_dim, d_state, scan, gate, random, rate, **dd))
        super().__init__(
            OverlappingPatches(in_chans, embed_dim, patch_size, stride, **dd), blocks,
            LayerNorm(embed_dim, eps=NORM_EPS, **dd), embed_dim, False, img_size, in_chans, num_classes, global_pool,
            drop_rate, decay_ssm=decay_ssm, **dd)
        self.pre_norm = LayerNorm(embed_dim, eps=NORM_EPS, **dd)
        self.fc_norm = LayerNorm(embed_dim, eps=NORM_EPS, **dd)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        return {**groups, "blocks": [groups["blocks"][0], (r"^norm|^pre_norm|^fc_norm", (99999,))]}

    def apply_block(self, block: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        return super().apply_block(block, x, *rest, self.pre_norm.weight, self.pre_norm.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> normalised tokens [B, L, C]."""
        x, height, width = self.embed(x)
        weight, bias = self.pre_norm.weight, self.pre_norm.bias
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, height, width, weight, bias)
            else:
                x = block(x, height, width, weight, bias)
        return self.norm(x)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


_RENAMES = (
    (r"^layers\.(\d+)\.", r"blocks.\1.mixer."),
    (r"^gate_layers\.(\d+)\.", r"blocks.\1.mixer.gate."),
    (r"\.conv1d\.", ".conv_"),
    (r"\.dt_proj\.", ".dt_"),
    (r"\.x_proj\.weight$", ".x_proj"),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^head\.fc\.", "head."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: TokenBackbone) -> dict[str, Tensor]:
    """Bring an official RSMamba checkpoint to this implementation's names and shapes; our own names pass unchanged.

    A position embedding for another grid is resized.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict, beside=("head.",))
    if not any(k.startswith("blocks.") for k in state):
        for pattern, name in _RENAMES:
            state = {re.sub(pattern, name, k): v for k, v in state.items()}
    state = fit_pos_embed(linear_weights(state, model), model)
    require_fit(state, model)
    return state


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "pool_size": None, "first_conv": "patch_embed.proj", "classifier": "head",
        "paper_name": "RSMamba: Remote Sensing Image Classification with State Space Model",
        "paper_ids": "arXiv:2403.19654", **kwargs})


def _published(f1: float) -> dict[str, Any]:
    """The authors publish a file for each dataset, in a folder of https://huggingface.co/KyanChen/RSMamba."""
    return _cfg(
        num_classes=45, origin_url="https://github.com/KyanChen/RSMamba",
        notes=(f"NWPU-RESISC45 F1 {f1} % (published in arXiv:2403.19654)",))


default_cfgs = generate_default_cfgs({
    "rsmamba_base.resisc45": _published(94.84),
    "rsmamba_large.resisc45": _published(95.02),
    "rsmamba_huge.resisc45": _published(95.18),
    "test_rsmamba.untrained": _cfg(input_size=(3, 96, 96)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> RSMamba:
    return build_tokens(RSMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def rsmamba_base(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-B: 6.4 M parameters, 45 classes, 94.84 % F1 on NWPU-RESISC45 (published)."""
    return _create("rsmamba_base", pretrained, {"embed_dim": 192, "depth": 24}, **kwargs)


@register_model
def rsmamba_large(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-L: 16.3 M parameters, 45 classes, 95.02 % F1 on NWPU-RESISC45 (published)."""
    return _create("rsmamba_large", pretrained, {"embed_dim": 256, "depth": 36}, **kwargs)


@register_model
def rsmamba_huge(pretrained: bool = False, **kwargs: Any) -> RSMamba:
    """RSMamba-H: 33.1 M parameters, 45 classes, 95.18 % F1 on NWPU-RESISC45 (published)."""
    return _create("rsmamba_huge", pretrained, {"embed_dim": 320, "depth": 48}, **kwargs)


@register_model
def test_rsmamba(pretrained: bool = False, **kwargs: Any) -> RSMamba:  # noqa: PT028  (a model, not a test)
    """A minimal RSMamba for tests."""
    model_args = {"img_size": 96, "embed_dim": 48, "depth": 3, "d_state": 4, "stride": 16}
    return _create("test_rsmamba", pretrained, model_args, **kwargs)
