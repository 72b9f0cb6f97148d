"""ViM2: selective token mixers and channel mixers, each of which sees a learned average of all earlier ones.

Paper: Behrouz et al., "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
arXiv:2403.19888. The authors released neither code nor weights, and call their results on images preliminary; this
implementation is our own, from the paper, and nothing says that it equals theirs.

What the paper leaves open, and what is done here:

- Its channel mixer transposes the map and then projects and scans as the token mixer does. Projections between
  positions would have more weights than the whole model and hold for one image size only. Here the projections act on
  channels, and the scan along the channels shares its parameters between positions; see
  :class:`vmamba.layers.ChannelScan`. Its widths are those of the paper's table: twice the block's, in the last stage
  the block's.
- The text has ViM2 scan the channels after "the same scans" as the tokens, the general MambaMixer forwards and
  backwards. Here: forwards and backwards.
- One channel mixer follows two token mixers. The formulas average over pairs of one each; here every mixer sees the
  weighted sum of the stage's input and of all mixers before it in the stage, and so does the next stage. The two
  weights that the formulas give the stage's input are one.
- Initial weights of the averages: ones, with which a stage is an ordinary residual network.
- The token mixer is that of VMamba's first release, with its norm after the scan, which the figure does not show.
- Parameters, with 1000 classes: 24.0 M, 43.7 M and 75.6 M, where the paper has 20 M, 43 M and 74 M. No width of the
  channel mixers gives all three: without them the three models have 19.3 M, 33.7 M and 57.8 M.
"""
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vmamba._timm import checkpoint, generate_default_cfgs, register_model
from vmamba.layers import SS2D, ChannelScan, LayerNorm, PatchMerging, PatchStem

from ._cfg import classifier_cfg
from ._checkpoint import open_envelope, require_fit
from ._hierarchical import HierarchicalBackbone, Stage, build_hierarchical, doubling, drop_path_rates

__all__ = ["ViM2"]

NORM_EPS = 1e-5
MIXERS_PER_BLOCK = 3  # two token mixers, one channel mixer


class AveragedMixer(nn.Module):
    """Norm and mixer on a weighted sum of maps; m maps ``[B, H, W, C]`` to one of that shape.

    Args:
        dim: Channels C.
        mixer: Maps to maps of the same shape.
        inputs: Number m of maps, of the stage's input and of all mixers before.
        drop_path: Stochastic depth.
    """

    def __init__(
            self, dim: int, mixer: nn.Module, inputs: int, drop_path: float, device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.average = nn.Parameter(torch.ones(inputs, **dd))
        self.norm = LayerNorm(dim, eps=NORM_EPS, **dd)
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """The sum of all maps."""
        nn.init.ones_(self.average)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.drop_path(self.mixer(self.norm(weighted_sum(maps, self.average))))


def weighted_sum(maps: list[Tensor], weights: Tensor) -> Tensor:
    """Sum of m maps with the weights [m]."""
    total = maps[0] * weights[0]
    for i in range(1, len(maps)):
        total = total + maps[i] * weights[i]
    return total


class AveragedStage(Stage):
    """Downsampling (none in the first stage), then mixers on weighted sums; ``[B, H, W, C] -> [B, H', W', C']``.

    Arxiv:2403.19888, equations 13 and 14.
    """

    def __init__(
            self, downsample: nn.Module, blocks: list[AveragedMixer], device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(downsample, blocks)
        self.average = nn.Parameter(torch.ones(len(blocks) + 1, device=device, dtype=dtype))

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """The sum of all maps."""
        nn.init.ones_(self.average)

    def run_blocks(self, x: Tensor) -> Tensor:
        maps = [x]
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                maps.append(checkpoint(block, maps.copy()))  # what a block took, when its gradient asks again
            else:
                maps.append(block(maps))
        return weighted_sum(maps, self.average)


class ViM2(HierarchicalBackbone):
    """ViM2 classifier and backbone.

    Args:
        in_chans: Input image channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling of the head, "avg", "max", ... or "" for none.
        dims: Channels of the four stages.
        depths: Blocks of the four stages, each of two token mixers and one channel mixer.
        d_state: States N of the scans.
        ssm_ratio: Inner channels of the token mixers as a multiple of the stage's.
        scan: Name of a scan order over the map, see :func:`vmamba.scans.scan_order`.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last mixer; rises linearly from 0.
        decay_ssm: Apply weight decay to ``A_log`` and ``dt_bias``.
    """

    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = "avg",
            dims: tuple[int, ...] = (96, 192, 384, 768),
            depths: tuple[int, ...] = (1, 1, 3, 1),
            d_state: int = 16,
            ssm_ratio: float = 2.0,
            scan: str = "cross",
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            decay_ssm: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        stages = []
        for i, rates in enumerate(drop_path_rates(drop_path_rate, [MIXERS_PER_BLOCK * depth for depth in depths])):
            inner = dims[i] if i == 3 else 2 * dims[i]
            blocks = []
            for j, rate in enumerate(rates):
                is_last = (j + 1) % MIXERS_PER_BLOCK == 0
                mixer = ChannelScan(dims[i], inner, d_state, **dd) if is_last else SS2D(
                    dims[i], d_state, ssm_ratio, conv_bias=True, scan=scan, gate=True, norm_eps=NORM_EPS, **dd)
                blocks.append(AveragedMixer(dims[i], mixer, j + 1, rate, **dd))
            downsample = PatchMerging(dims[i - 1], dims[i], NORM_EPS, **dd) if i > 0 else nn.Identity()
            stages.append(AveragedStage(downsample, blocks, **dd))
        super().__init__(
            PatchStem(in_chans, dims[0], NORM_EPS, **dd), stages, dims, in_chans, num_classes, global_pool, drop_rate,
            NORM_EPS, decay_ssm=decay_ssm, **dd)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups = super().group_matcher(coarse)
        if not coarse:  # a stage's last sum comes after its blocks
            groups["blocks"].insert(1, (r"^stages\.(\d+)\.average", (99998,)))
        return groups


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """The weights in a training checkpoint of this package; nobody else has published any.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    require_fit(state, model)
    return state


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return classifier_cfg(**{
        "paper_name": "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
        "paper_ids": "arXiv:2403.19888", **kwargs})


def _unreleased(top1: float) -> dict[str, Any]:
    return _cfg(notes=(f"ImageNet-1K top-1 {top1} % in the paper, whose weights were not published",))


default_cfgs = generate_default_cfgs({
    "vim2_tiny.untrained": _unreleased(82.7),
    "vim2_small.untrained": _unreleased(83.7),
    "vim2_base.untrained": _unreleased(83.9),
    "test_vim2.untrained": _cfg(input_size=(3, 160, 160), pool_size=(5, 5)),
})


def _create(variant: str, pretrained: bool, model_args: dict[str, Any], **kwargs: Any) -> ViM2:
    return build_hierarchical(ViM2, variant, pretrained, checkpoint_filter_fn, model_args, kwargs)


@register_model
def vim2_tiny(pretrained: bool = False, **kwargs: Any) -> ViM2:
    """ViM2-T, from the paper alone: 24.0 M parameters, where the paper has 20 M."""
    return _create("vim2_tiny", pretrained, {"dims": doubling(96), "depths": (1, 1, 3, 1)}, **kwargs)


@register_model
def vim2_small(pretrained: bool = False, **kwargs: Any) -> ViM2:
    """ViM2-S, from the paper alone: 43.7 M parameters, where the paper has 43 M."""
    return _create("vim2_small", pretrained, {"dims": doubling(96), "depths": (1, 1, 9, 1)}, **kwargs)


@register_model
def vim2_base(pretrained: bool = False, **kwargs: Any) -> ViM2:
    """ViM2-B, from the paper alone: 75.6 M parameters, where the paper has 74 M."""
    return _create("vim2_base", pretrained, {"dims": doubling(128), "depths": (1, 1, 9, 1)}, **kwargs)


@register_model
def test_vim2(pretrained: bool = False, **kwargs: Any) -> ViM2:  # noqa: PT028  (a model, not a test)
    """A minimal ViM2 for tests."""
    model_args = {"dims": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "d_state": 4}
    return _create("test_vim2", pretrained, model_args, **kwargs)
