"""MLP of residual blocks."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops.gelu_linear import gelu_linear_call

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
        x = self.fc1(x)
        if torch.jit.is_scripting():
            return torch.ops.vmamba.gelu_linear(x, self.fc2.weight, self.fc2.bias)[0]
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():  # a compiler knows itself what not to keep
            return self.fc2(F.gelu(x))
        return gelu_linear_call(x, self.fc2.weight, self.fc2.bias, "auto")[0]
