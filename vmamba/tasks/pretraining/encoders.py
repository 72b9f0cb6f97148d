"""Models that see the visible patches of an image only, as encoders of masked image modelling."""
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.models._hierarchical import HierarchicalBackbone
from vmamba.models._tokens import TokenBackbone
from vmamba.models.rsmamba import RSMamba
from vmamba.models.videomamba import VideoMamba
from vmamba.models.vim import Vim

from .masks import visible_at

__all__ = ["MaskedEncoder", "MaskedSequence", "MaskedStages", "MaskedTokens", "masked_encoder"]


class MaskedEncoder(nn.Module):
    """Base of the encoders: a model without its classifier, whose weights are what pre-training is for.

    Args:
        model: A timm model built with ``num_classes=0``.

    Attributes:
        channels: Channels of its maps, finest first.
        strides: Pixels a cell of each map stands for.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name in ("fc_norm", "head"):    # behind the features: no gradient comes there
            if hasattr(model, name):
                getattr(model, name).requires_grad_(False)
        levels = model.feature_info
        self.channels: list[int] = [level["num_chs"] for level in levels]
        self.strides: list[int] = [level["reduction"] for level in levels]

    def forward(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Feature maps of the visible patches, finest first.

        Args:
            images: [B, in_chans, H, W]. Masked pixels are set to zero, the mean colour, before anything looks at them.
            visible: [B, rows, columns] bool, of patches of H / rows pixels.

        Returns:
            Maps [B, H / stride, W / stride, C]; what they have at masked cells is to be replaced.
        """
        pixels = visible_at(visible, (images.shape[2], images.shape[3]))
        return self.encode(images * pixels.unsqueeze(1), visible)

    def leave_out(self, mask_size: int) -> None:
        """Leaves out maps whose cells are larger than patches of so many pixels."""
        count = sum(stride <= mask_size for stride in self.strides)
        self.channels, self.strides = self.channels[:count], self.strides[:count]

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        """Maps of images whose masked pixels are zero already."""
        raise NotImplementedError


class MaskedStages(MaskedEncoder):
    """Hierarchical models: maps stay whole, and masked cells are set to zero after the stem and after every block.

    So features do not grow into the masked cells, neither through convolutions nor through scans, as with the sparse
    convolutions of MambaMIM's (arXiv:2408.08070) and SparK's (Tian et al., arXiv:2301.03580) encoders. Scans of a map
    still pass masked cells, with a constant input; norms over the batch count them.

    Stages whose cells are larger than a patch are left out and keep their weights: patches are told without them, and
    trained along they come to give all images nearly the same features, from which fine-tuning starts late.
    """

    def __init__(self, model: HierarchicalBackbone) -> None:
        super().__init__(model)
        # stays between calls: gradient checkpointing runs the blocks again in the backward pass
        self._visible: Tensor | None = None
        for part in [model.stem, *(part for stage in model.stages
                                   for part in (stage.downsample, *stage.blocks, stage))]:  # type: ignore[misc]
            part.register_forward_hook(self._drop_masked)

    def _drop_masked(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._visible is None or output.ndim != 4:   # tokens of windows: dropped at the end of their stage
            return output
        return output * visible_at(self._visible, (output.shape[1], output.shape[2])).unsqueeze(-1)

    def leave_out(self, mask_size: int) -> None:
        """Leaves out such stages, and freezes what comes after the others."""
        super().leave_out(mask_size)
        count = len(self.strides)
        if count < len(self.model.stages):
            for part in (*self.model.stages[count:], self.model.norm):
                part.requires_grad_(False)

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        self._visible = visible
        count = len(self.channels)
        maps = self.model.forward_stages(self.model.stem(images), count)
        return maps if count < len(self.model.stages) else [*maps[:-1], self.model.norm(maps[-1])]


class MaskedTokens(MaskedEncoder):
    """Token models that walk a grid: masked tokens are set to zero before the first block and after each."""

    def __init__(self, model: TokenBackbone) -> None:
        super().__init__(model)
        self.channels, self.strides = self.channels[-1:], self.strides[-1:]

    def encode(self, images: Tensor, visible: Tensor) -> list[Tensor]:
        x, rows, columns = self.model.embed(images)
        grid = self.model.patch_embed.grid_size(images.shape[2], images.shape[3])
        cells = visible_at(visible, grid).flatten(1)
        # where the class token is, if there is one, only the model knows
        numbers = torch.arange(x.shape[1], device=x.device).view(1, -1, 1)
        patches = self.model._split(numbers)[0].flatten()
        kept = torch.ones(len(x), x.shape[1], dtype=torch.bool, device=x.device)
        kept[:, patches] = cells
        x = self.run(x, kept, rows, columns)
        return [self.model.norm(x[:, patches]).unflatten(1, grid)]

    def run(self, x: Tensor, kept: Tensor, rows: int, columns: int) -> Tensor:
        """The blocks on tokens [B, L, C], of which those of ``kept`` [B, L] count."""
        x = x * kept.unsqueeze(-1)
        for block in self.model.blocks:
            x = self.model.apply_block(block, x, rows, columns) * kept.unsqueeze(-1)
        return x


class MaskedSequence(MaskedTokens):
    """Token models that walk a sequence whatever its grid (Vim, VideoMamba, RSMamba): it has the visible tokens only.

    In their order, with the class token where it is among them, as the Mamba layers of MambaMIM's encoder have it. A
    block costs what is visible.
    """

    def run(self, x: Tensor, kept: Tensor, rows: int, columns: int) -> Tensor:
        """The blocks on tokens [B, L, C], of which those of ``kept`` [B, L] are there; as many in every image."""
        count = int(kept[0].sum())
        places = kept.int().argsort(stable=True, dim=1, descending=True)[:, :count, None].expand(-1, -1, x.shape[-1])
        y = x.gather(1, places)
        for block in self.model.blocks:
            y = self.model.apply_block(block, y, 1, count)
        return torch.zeros_like(x).scatter(1, places, y)


def masked_encoder(model: Any) -> MaskedEncoder:
    """The encoder that fits a model.

    Args:
        model: A model of this suite, built with ``num_classes=0``.

    Raises:
        TypeError: It is none of the families that can be masked.
    """
    if isinstance(model, HierarchicalBackbone):
        return MaskedStages(model)
    if isinstance(model, (Vim, VideoMamba, RSMamba)):
        return MaskedSequence(model)
    if isinstance(model, TokenBackbone):
        return MaskedTokens(model)
    raise TypeError(f"{type(model).__name__} cannot be masked: pre-training takes the hierarchical and the token "
                    "models of vmamba")
