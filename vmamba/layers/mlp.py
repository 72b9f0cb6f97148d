"""MLP of residual blocks."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops.mlp import mlp_call

from .plain import is_plain

__all__ = ["Mlp"]


class Mlp(nn.Module):
    """Linear, GELU, linear; keeps for its backward the hidden features before the activation only.

    Args:
        dim: Channels C of input and output.
        hidden: Channels between.
    """

    def __init__(self, dim: int, hidden: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C] -> [..., C]``."""
        if not torch.jit.is_scripting():
            # without gradients there is nothing to keep; on a CPU a compiler does at least as well
            fused = torch.is_grad_enabled() and (not torch.compiler.is_compiling() or x.is_cuda)
            if fused and self.has_plain_layers():
                return mlp_call(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, "auto")[0]
        return self.fc2(F.gelu(self.fc1(x)))

    @torch.jit.ignore
    def has_plain_layers(self) -> bool:
        """Whether an operator may stand for both layers."""
        return is_plain(self.fc1, nn.Linear) and is_plain(self.fc2, nn.Linear)
