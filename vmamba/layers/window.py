"""Maps cut into square windows and put together again."""
import torch
from torch import Tensor

import vmamba.ops  # noqa: F401  (registers torch.ops.vmamba)

__all__ = ["from_windows", "to_windows"]

# By an operator that walks a scan order over windows: cutting by views cannot be exported for dynamic sizes.


def to_windows(x: Tensor, size: int) -> Tensor:
    """Tokens of each window, row by row: ``[B, H, W, C] -> [B * windows, size * size, C]``.

    Maps that windows do not divide are padded with zeros at the bottom and right.
    """
    _, H, W, C = x.shape
    return torch.ops.vmamba.reorder(x.flatten(1, 2), f"w{size}", H, W, True).view(-1, size * size, C)


def from_windows(x: Tensor, size: int, batch: int, height: int, width: int) -> Tensor:
    """The map of which :func:`to_windows` made windows, without its padding: ``[batch, height, width, C]``."""
    channels = x.shape[-1]
    x = torch.ops.vmamba.reorder(x.reshape(batch, -1, 1, channels), f"w{size}", height, width, False)
    return x.view(batch, height, width, channels)
