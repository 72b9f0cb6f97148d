"""Masked image modelling as a task of timm: what `timm.task`'s loops, and ours, train."""
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from vmamba.train.sharding import load_module

from .masks import draw_visible, masked_patch_loss
from .model import MaskedImageModel

__all__ = ["MaskedImageTask"]


class MaskedImageTask(TrainingTask):
    """Trains an encoder to tell what is under the masked patches of images; labels are not looked at.

    Checkpoints have the encoder as the model, under its own names, and tokens and decoder as the task's state.

    Args:
        model: Encoder, tokens and decoder.
        mask_ratio: Part of the patches that is masked, 0 to 1.
        **kwargs: Of `TrainingTask`.
    """

    def __init__(self, model: MaskedImageModel, mask_ratio: float = 0.75, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trainable_module: nn.Module = model
        self.mask_ratio = mask_ratio

    def forward(self, input: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        """Images [B, C, H, W] -> `loss`, and `output` [B, C, H, W], the predicted pixels.

        Patches are drawn by PyTorch's generator of the CPU, whatever the device.
        """
        grid = self.masked_image_model().grid(input)
        visible = draw_visible(len(input), grid, self.mask_ratio).to(input.device)
        predicted = self.trainable_module(input, visible)
        return {"loss": masked_patch_loss(predicted, input, visible).mean(), "output": predicted}

    def masked_image_model(self, ema: bool = False) -> MaskedImageModel:
        """The trained, or the averaged, encoder and decoder, without wrappers around them."""
        return unwrap_model(self.get_trainable_module(ema=ema))

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> "MaskedImageTask":
        """Wraps encoder and decoder in DistributedDataParallel."""
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> nn.Module:  # type: ignore[override]  # as timm's
        """Compiles encoder and decoder together; the encoder alone is not run."""
        compiled: Any = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        self.trainable_module = compiled
        return compiled

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The encoder: the model that checkpoints are of."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module).encoder.model

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Weights of tokens and decoder."""
        module = module if module is not None else self.get_trainable_module(ema=ema)
        if module is None:
            return {}
        model = unwrap_model(module)
        return {"fill": model.fill.state_dict(), "decoder": model.decoder.state_dict()}

    def load_task_state(
            self, state: dict[str, Any] | None, strict: bool = True, module: nn.Module | None = None,
            ema: bool = False,
    ) -> None:
        """Loads what `get_task_state` gave.

        Raises:
            KeyError: There is no such state.
            RuntimeError: It is one of another decoder.
        """
        model = unwrap_model(module if module is not None else self.get_trainable_module(ema=ema))
        state = state or {}
        load_module(model.fill, state["fill"], strict)
        load_module(model.decoder, state["decoder"], strict)
