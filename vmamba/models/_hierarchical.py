"""What hierarchical families share: four stages of channels-last maps, and everything timm expects of a backbone."""
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from torch import Tensor, nn

from vmamba._timm import build_model_with_cfg, checkpoint_seq, feature_take_indices
from vmamba.layers import LayerNorm

from ._checkpoint import AllOrNothing, read_pickles_safely

__all__ = ["HierarchicalBackbone", "Stage", "build_hierarchical", "doubling", "drop_path_rates"]


class Stage(nn.Module):
    """Downsampling (none in the first stage), then blocks at one resolution; ``[B, H, W, C] -> [B, H', W', C']``.

    Args:
        downsample: Module before the blocks.
        blocks: The blocks.
        chain: Class of the sequence that they become.
    """

    def __init__(
            self, downsample: nn.Module, blocks: Sequence[nn.Module], chain: type[nn.Sequential] = nn.Sequential,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = chain(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.downsample(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        """The blocks alone, on what they take."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class HierarchicalBackbone(AllOrNothing):
    """Stem, stages, norm and classifier; a family adds the constructor that builds its stem and stages.

    Args:
        stem: Images [B, in_chans, H, W] to a channels-last map at stride 4.
        stages: The stages; each but the first halves the map.
        dims: Channels of the stages.
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        drop_rate: Dropout before the classifier.
        norm_eps: Epsilon of the norm before the classifier.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``.

    Attributes:
        default_init: Ends of the names of linear layers that keep torch's own initialisation.
    """

    default_init: tuple[str, ...] = (".x_proj",)

    def __init__(
            self, stem: nn.Module, stages: Sequence[Stage], dims: Sequence[int], in_chans: int, num_classes: int,
            global_pool: str, drop_rate: float, norm_eps: float, decay_ssm: bool = True, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes, self.in_chans = num_classes, in_chans
        self.output_fmt = "NHWC"
        self.decay_ssm = decay_ssm
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2 ** i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]

        self.num_features = self.head_hidden_size = dims[-1]
        self.norm: nn.Module = LayerNorm(self.num_features, eps=norm_eps, **dd)
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
            if isinstance(module, nn.Linear) and not name.endswith(self.default_init):
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
            cast(Stage, stage).grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

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
        maps = self.forward_stages(self.stem(x), max_index + 1 if stop_early else len(self.stages))
        intermediates = []
        for i, y in enumerate(maps):
            if i in take_indices:
                y = self.norm(y) if norm and i == last else y
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        return (self.norm(maps[-1]) if len(maps) - 1 == last else maps[-1]), intermediates

    def forward_stages(self, x: Tensor, count: int) -> list[Tensor]:
        """Maps of the first ``count`` stages, from the stem's."""
        maps = []
        for stage in cast(nn.Sequential, self.stages[:count]):
            x = stage(x)
            maps.append(x)
        return maps

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
        """Images [B, in_chans, H, W] -> normalised map [B, H / 32, W / 32, C]."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, in_chans, H, W] -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth of each stage's blocks, rising linearly from 0 to ``rate`` over all blocks."""
    return cast("list[list[float]]", calculate_drop_path_rates(rate, list(depths), stagewise=True))


def doubling(width: int) -> tuple[int, ...]:
    """Channels of four stages, each twice as wide as the one before."""
    return width, 2 * width, 4 * width, 8 * width


def build_hierarchical(
        cls: type[HierarchicalBackbone], variant: str, pretrained: bool, filter_fn: Callable,
        model_args: dict[str, Any], kwargs: dict[str, Any],
) -> Any:
    """timm's builder for a hierarchical family, with feature maps by the getter.

    The getter gives maps as NCHW, which detection and segmentation heads expect.
    """
    return build_model_with_cfg(
        cls, variant, pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **read_pickles_safely({**model_args, **kwargs}),
    )
