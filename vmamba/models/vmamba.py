"""VMamba: hierarchical backbones on the 2-D selective scan.

Paper: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv:2401.10166.
Origin of the weights: https://github.com/MzeroMiko/VMamba (MIT). This implementation is our own.

Names follow the authors': ``s`` is the ratio of inner to outer channels of the scan, ``l`` the number of blocks of the
third stage; ``v0`` is the first release (gated, 16 states, no MLP). Maps are channels-last throughout and any image
size works.
"""
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import generate_default_cfgs, register_model
from vmamba.layers import SS2D, ConvDownsample, ConvStem, LayerNorm, Mlp, PatchMerging, PatchStem
from vmamba.layers.norm import drop_path_scale
from vmamba.layers.plain import is_plain, runs_alone_on_gpu
from vmamba.ops.residual_block import residual_block

from ._cfg import classifier_cfg
from ._checkpoint import fit_official, load_released, open_envelope
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates
from ._vmamba_names import vmamba_native_name

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
        self.drop_path1 = drop_path
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, **dd) if mlp_ratio > 0 else None
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd) if mlp_ratio > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.mixer(self.norm1(x))
        if self.norm2 is None:
            return x + self.drop_path2(branch)
        x, y = self.norm2.add(x, branch, self.drop_path1)
        return x + self.drop_path2(self.mlp(y))

    @torch.jit.ignore
    def is_one_node(self, x: Tensor) -> bool:
        """Whether autograd need know of no parts of it, given that it runs alone on a GPU; compilers take operators."""
        mixer, mlp, norm1, norm2 = self.mixer, self.mlp, self.norm1, self.norm2
        return (
            torch.is_grad_enabled() and not torch.compiler.is_compiling()
            and is_plain(mixer, SS2D) and mixer.is_one_operator(x)
            and is_plain(mlp, Mlp) and cast(Mlp, mlp).has_plain_layers()
            and norm2 is not None and is_plain(norm2, LayerNorm) and norm1.eps == norm2.eps == mixer.norm_eps)

    @torch.jit.ignore
    def one_node(self, x: Tensor, branch: Tensor | None, drop_path: float) -> tuple[Tensor, Tensor]:
        """The residual stream, to which ``branch`` has yet to be added, and the branch yet to be added after it."""
        norm1, norm2, mlp = self.norm1, cast(LayerNorm, self.norm2), cast(Mlp, self.mlp)
        scales = (
            drop_path_scale(x, drop_path if norm1.training else 0.0),
            drop_path_scale(x, self.drop_path1 if norm2.training else 0.0))
        return residual_block(
            x, branch, scales, (norm1.weight, norm1.bias), self.mixer.operator_weights(), (norm2.weight, norm2.bias),
            (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias), self.mixer.scan, norm1.eps)


class VMambaBlocks(nn.Sequential):
    """Blocks in a row. On a GPU the last addition of one and the first norm of the next are one pass over the map."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C] -> [B, H, W, C]``."""
        if not torch.jit.is_scripting():    # TorchScript passes over what is below a test of this alone
            joined = runs_alone_on_gpu(x) and self._can_join()
            if joined:
                return self._join(x)
        for block in self:
            x = block(x)
        return x

    @torch.jit.ignore
    def _can_join(self) -> bool:
        """Whether nothing that is passed over has to be called."""
        return all(
            is_plain(block, VMambaBlock) and block.norm2 is not None and is_plain(block.norm1, LayerNorm)
            and (is_plain(block.drop_path2, nn.Identity)
                 or (is_plain(block.drop_path2, DropPath) and cast(DropPath, block.drop_path2).scale_by_keep))
            for block in cast("Iterable[VMambaBlock]", self))

    @torch.jit.ignore
    def _join(self, x: Tensor) -> Tensor:
        branch, drop_path = None, 0.0
        for block in cast("Iterable[VMambaBlock]", self):
            if block.is_one_node(x):
                x, branch = block.one_node(x, branch, drop_path)
            else:
                if branch is None:
                    y = block.norm1(x)
                else:
                    x, y = block.norm1.add(x, branch, drop_path)
                x, y = cast(LayerNorm, block.norm2).add(x, block.mixer(y), block.drop_path1)
                branch = block.mlp(y)
            drop_path = block.drop_path2.drop_prob if isinstance(block.drop_path2, DropPath) else 0.0
        return x + block.drop_path2(branch) if branch is not None else x


class VMamba(HierarchicalBackbone):
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
        scan: Name of a scan order over the map, see :func:`vmamba.scans.scan_order`, such as "hilbert4". Its number of
            directions is the model's K; released weights have 4.
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
        dd = {"device": device, "dtype": dtype}
        ssm = {"d_state": d_state, "ssm_ratio": ssm_ratio, "conv_bias": conv_bias, "gate": gate, "scan": scan}
        downsample = PatchMerging if patch_stem else ConvDownsample
        stages = [
            Stage(
                downsample(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity(),
                [VMambaBlock(dims[i], mlp_ratio, rate, ssm, **dd) for rate in rates], VMambaBlocks)
            for i, rates in enumerate(drop_path_rates(drop_path_rate, depths))]
        stem = (PatchStem if patch_stem else ConvStem)(in_chans, dims[0], NORM_EPS, **dd)
        super().__init__(
            stem, stages, dims, in_chans, num_classes, global_pool, drop_rate, NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def load_pretrained(self, checkpoint_path: str, prefix: str = "") -> None:
        """Load a released file without running code from it; see ``load_released``."""
        load_released(self, checkpoint_path, checkpoint_filter_fn)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Bring a checkpoint of any official VMamba release to this implementation's names and shapes.

    Takes training envelopes, both official layouts and their older names, 1x1-convolution weights, and checkpoints of
    detection or segmentation backbones, whose norms per output are left out. Our own names pass unchanged.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key, or the numbers of
            scan directions where these differ.
    """
    _require_directions(open_envelope(state_dict), model)
    patch_stem = isinstance(model.stem, PatchStem)
    return fit_official(state_dict, model, lambda key: vmamba_native_name(key, patch_stem))


def _require_directions(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise where a checkpoint is for the same model with a scan order of another number of directions."""
    mixer = next(module for module in model.modules() if isinstance(module, SS2D))
    theirs = next((v for k, v in state.items() if k.endswith((".dt_weight", ".dt_projs_weight"))), mixer.dt_weight)
    if theirs.shape[1:] == mixer.dt_weight.shape[1:] and len(theirs) != mixer.directions:
        raise RuntimeError(
            f"the checkpoint has {len(theirs)} scan directions, but scan={mixer.scan!r} has {mixer.directions}; "
            f"name an order of {len(theirs)}, e.g. by joining orders with '+'")


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    base = "https://github.com/MzeroMiko/VMamba/releases/download/"
    # released files carry a pickled configuration, which load_pretrained() knows how to pass over
    released = {
        "url": base + file, "custom_load": True, "license": "mit", "origin_url": "https://github.com/MzeroMiko/VMamba",
    } if file else {}
    return classifier_cfg(**{
        "first_conv": "stem.conv1", "paper_name": "VMamba: Visual State Space Model", "paper_ids": "arXiv:2401.10166",
        **released, **kwargs})


_S1L8 = "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"
_S2L15_SMALL = "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"
_S2L15_BASE = "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"

default_cfgs = generate_default_cfgs({
    "vmamba_tiny.in1k": _cfg(_S1L8, top1=82.6),
    "vmamba_small.in1k": _cfg(_S2L15_SMALL, top1=83.6),
    "vmamba_base.in1k": _cfg(_S2L15_BASE, top1=83.9),
    "vmamba_tiny_s1l8.in1k": _cfg(_S1L8, top1=82.6),
    "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth", top1=83.3),
    "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth", top1=83.8),
    "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth", top1=82.5),
    "vmamba_small_s2l15.in1k": _cfg(_S2L15_SMALL, top1=83.6),
    "vmamba_base_s2l15.in1k": _cfg(_S2L15_BASE, top1=83.9),
    "vmamba_tiny_v0.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", top1=82.2, first_conv="stem.conv"),
    "vmamba_small_v0.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", top1=83.5, first_conv="stem.conv"),
    "vmamba_base_v0.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", top1=83.7, first_conv="stem.conv"),
    "vmamba_nano.untrained": _cfg(),
    "test_vmamba.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create_vmamba(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> VMamba:
    return build_hierarchical(VMamba, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


_V0 = {"d_state": 16, "ssm_ratio": 2.0, "mlp_ratio": 0.0, "conv_bias": True, "gate": True, "patch_stem": True}


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T of the paper's main table, which is ``vmamba_tiny_s1l8``."""
    return _create_vmamba("vmamba_tiny", pretrained, {"dims": doubling(96), "depths": (2, 2, 8, 2)}, **kwargs)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S of the paper's main table, which is ``vmamba_small_s2l15``."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_small", pretrained, model_args, **kwargs)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B of the paper's main table, which is ``vmamba_base_s2l15``."""
    model_args = {"dims": doubling(128), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_base", pretrained, model_args, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s1l8]: 30.2 M parameters, 82.6 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_tiny_s1l8", pretrained, {"dims": doubling(96), "depths": (2, 2, 8, 2)}, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s1l20]: 49.0 M parameters, 83.3 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_small_s1l20", pretrained, {"dims": doubling(96), "depths": (2, 2, 20, 2)}, **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s1l20]: 86.6 M parameters, 83.8 % ImageNet-1K top-1 (published)."""
    return _create_vmamba("vmamba_base_s1l20", pretrained, {"dims": doubling(128), "depths": (2, 2, 20, 2)}, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s2l5]: 30.7 M parameters, 82.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 5, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_tiny_s2l5", pretrained, model_args, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s2l15]: 50.1 M parameters, 83.6 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_small_s2l15", pretrained, model_args, **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s2l15]: 88.6 M parameters, 83.9 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(128), "depths": (2, 2, 15, 2), "ssm_ratio": 2.0}
    return _create_vmamba("vmamba_base_s2l15", pretrained, model_args, **kwargs)


@register_model
def vmamba_tiny_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-T, the first release: 22.9 M parameters, 82.2 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 9, 2), **_V0}
    return _create_vmamba("vmamba_tiny_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_small_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-S, the first release: 44.4 M parameters, 83.5 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(96), "depths": (2, 2, 27, 2), **_V0}
    return _create_vmamba("vmamba_small_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_base_v0(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla VMamba-B, the first release: 76.3 M parameters, 83.7 % ImageNet-1K top-1 (published)."""
    model_args = {"dims": doubling(128), "depths": (2, 2, 27, 2), **_V0}
    return _create_vmamba("vmamba_base_v0", pretrained, model_args, **kwargs)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A small VMamba of our own for CPUs and small images; no published weights."""
    return _create_vmamba("vmamba_nano", pretrained, {"dims": doubling(32), "depths": (1, 1, 3, 1)}, **kwargs)


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:  # noqa: PT028  (a model, not a test)
    """A minimal VMamba for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 2, 2, 1)}
    return _create_vmamba("test_vmamba", pretrained, model_args, **kwargs)
