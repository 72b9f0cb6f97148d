"""The backbone: any model that timm can create, giving feature maps to detection and segmentation heads."""
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import vmamba  # noqa: F401  (registers the models)
from vmamba.errors import UserError, near_names

from .checkpoint import native_state, pretrained_weights, read_weights

__all__ = ["TimmFeatureBackbone"]

NORM_EPS = 1e-5
# levels that feature pyramids and segmentation heads usually take
USUAL_LEVELS = 4


@MODELS.register_module()
class TimmFeatureBackbone(BaseModule):
    """Feature maps of a timm model for mmdet, mmseg and other toolboxes on mmengine.

    Images [B, in_chans, H, W] go in, a tuple of contiguous maps [B, C_i, H_i, W_i] comes out, one for each index in
    ``out_indices``. The classifier, and what comes after the last map that is asked for, are removed.

    Checkpoints of whole detectors and segmentors load in the key layout of this class and in that of the model's
    authors, through ``load_from`` of a config too; ``pretrained`` also takes ImageNet checkpoints.

    Args:
        model_name: Name of a model, see ``timm.list_models()``.
        out_indices: Maps to return, negative ones counting from the end; by default the last four, and of a plain
            model the last.
        out_norm: Normalise each map over its channels (LayerNorm), as VMamba, Swin and their like do for dense
            prediction. False for convolutional networks with BatchNorm.
        plain: Says that the model is a plain one, whose maps all have one stride, and that a
            :class:`SimpleFeaturePyramid` follows.
        drop_path_rate: Stochastic depth; None for the model's default.
        frozen_stages: Number of stages (blocks of a plain model) that are not trained, besides the stem; 0 freezes the
            stem only, -1 nothing.
        norm_eval: Keep BatchNorm layers in evaluation mode while training.
        with_cp: Trade compute for memory by activation checkpointing.
        channels_last: Run the model in PyTorch's channels-last memory format, which helps convolutional networks on
            GPUs. The maps come out contiguous all the same: mmcv's operators read memory in that order.
        pretrained: Weights that ``init_weights()``, which a Runner calls before training, loads: True for those that
            timm knows for the name, a file, an ``https://`` address, or ``hf-hub:`` and a repository.
        model_args: More arguments for the model, e.g. ``dict(img_size=1024)``.
        init_cfg: ``dict(type="Pretrained", checkpoint=...)``, the toolboxes' way to say ``pretrained``.

    Attributes:
        out_channels: Channels of the maps.
        out_strides: Strides of the maps.

    Raises:
        UserError: Wrong name, map or number of stages, a plain model without ``plain``, or a checkpoint that does not
            fit.
    """

    def __init__(
            self,
            model_name: str,
            out_indices: Sequence[int] | None = None,
            out_norm: bool = True,
            plain: bool = False,
            drop_path_rate: float | None = None,
            frozen_stages: int = -1,
            norm_eval: bool = False,
            with_cp: bool = False,
            channels_last: bool = False,
            pretrained: bool | str = False,
            model_args: Mapping[str, Any] | None = None,
            init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.init_cfg = init_cfg
        self.pretrained = _weights_source(pretrained, init_cfg)
        self.model_name = model_name
        self.model_args = dict(model_args or {})
        if drop_path_rate is not None:
            self.model_args["drop_path_rate"] = drop_path_rate
        model = _create(model_name, self.model_args)
        self.out_indices = _levels(model_name, model.feature_info, out_indices, plain)
        infos = [model.feature_info[i] for i in self.out_indices]
        self.out_channels = tuple(info["num_chs"] for info in infos)
        self.out_strides = tuple(info["reduction"] for info in infos)

        every = set(model.state_dict())
        model.prune_intermediate_layers(list(self.out_indices), prune_norm=True, prune_head=True)
        self.removed_keys = every - set(model.state_dict())
        if with_cp:
            model.set_grad_checkpointing(True)
        self.channels_last = channels_last
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.out_norm = out_norm
        if out_norm:
            for index, channels in zip(self.out_indices, self.out_channels, strict=True):
                self.add_module(f"outnorm{index}", LayerNorm2d(channels, eps=NORM_EPS))

        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._freeze()
        self.register_load_state_dict_pre_hook(_convert_on_load)

    def init_weights(self) -> None:
        """Load what ``pretrained`` or ``init_cfg`` names; timm has initialised everything else at construction.

        Raises:
            UserError: The weights cannot be read or do not fit.
        """
        if self.pretrained is False:
            return
        if self.pretrained is True:
            state, source = pretrained_weights(self.model_name, self.model_args), "timm's pretrained model"
        else:
            state, source = read_weights(self.pretrained), self.pretrained
        self.load_state_dict(native_state(self, state, source), strict=False)  # only norms of the maps can be missing
        print_log(f"{self.model_name}: weights of {source} loaded", logger="current")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images [B, in_chans, H, W] -> maps [B, C_i, H_i, W_i], contiguous."""
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.model.forward_intermediates(
            x, indices=list(self.out_indices), stop_early=True, intermediates_only=True)
        if self.out_norm:
            maps = [getattr(self, f"outnorm{i}")(y) for i, y in zip(self.out_indices, maps, strict=True)]
        return tuple(y.contiguous() for y in maps)

    def train(self, mode: bool = True) -> "TimmFeatureBackbone":
        """As ``nn.Module``'s, with frozen stages and, with ``norm_eval``, BatchNorm left in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.model.modules():
                params = list(module.parameters())
                frozen = bool(params) and not any(p.requires_grad for p in params)
                if frozen or (self.norm_eval and isinstance(module, _BatchNorm)):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        stages = group_parameters(self.model, self.model.group_matcher(coarse=True), reverse=True)
        count = max(stages.values())
        if self.frozen_stages > count:
            raise UserError(
                f"frozen_stages is {self.frozen_stages}, but {self.model_name} has {count} stages; "
                f"write -1 (none) to {count}")
        for name, parameter in self.model.named_parameters():
            if stages[name] <= self.frozen_stages:
                parameter.requires_grad_(False)
        self.train(self.training)


def _weights_source(pretrained: bool | str, init_cfg: Mapping[str, Any] | None) -> bool | str:
    """What to load, from the two ways to say it."""
    if not init_cfg:
        return pretrained
    if init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg or pretrained:
        raise UserError(
            "init_cfg of TimmFeatureBackbone needs to be dict(type='Pretrained', checkpoint='FILE'), and pretrained "
            "left out; write one of them")
    return init_cfg["checkpoint"]


def _create(name: str, args: Mapping[str, Any]) -> Any:
    """The timm model of a name, with its classifier; checks that it can give feature maps."""
    if not timm.is_model(name):
        raise UserError(f"there is no model {name!r} in timm or vmamba{near_names(name, timm.list_models())}")
    model = timm.create_model(name, **args)
    if not getattr(model, "feature_info", None) or not hasattr(model, "forward_intermediates"):
        raise UserError(
            f"{name} gives no feature maps, only classes; models that do are listed by "
            "timm.list_models() and have forward_intermediates(), e.g. vmamba_tiny or resnet18")
    return model


def _levels(
        name: str, infos: Sequence[Mapping[str, Any]], out_indices: Sequence[int] | None, plain: bool,
) -> tuple[int, ...]:
    """Indices of the maps to return, checked and counted from the start."""
    count = len(infos)
    strides = [info["reduction"] for info in infos]
    is_plain = count > 1 and len(set(strides)) == 1
    if is_plain and not plain:
        width = infos[-1]["num_chs"]
        raise UserError(
            f"{name} is a plain model, all its maps have stride {strides[0]}: write plain=True in the backbone and "
            f"neck=dict(type='SimpleFeaturePyramid', in_channels={width}, out_channels=256) behind it")
    if out_indices is None:
        out_indices = range(count - (1 if is_plain else min(USUAL_LEVELS, count)), count)
    wrong = [i for i in out_indices if not -count <= i < count]
    if wrong or not out_indices:
        last = min(USUAL_LEVELS, count)
        raise UserError(
            f"out_indices {tuple(out_indices)} of {name}: it has the maps 0 to {count - 1} (strides "
            f"{', '.join(map(str, strides))}); write e.g. out_indices={tuple(range(count - last, count))}")
    return tuple(sorted(i % count for i in out_indices))


def _convert_on_load(
        module: TimmFeatureBackbone, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before a state dict is loaded: bring the backbone's part of it to this class's names."""
    own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not own or any(k.startswith("model.") for k in own):
        return
    for key in own:
        del state_dict[prefix + key]
    for key, value in native_state(module, own, "the checkpoint").items():
        state_dict[prefix + key] = value
