"""Normalisation of channels-last maps and tokens."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops.add_layer_norm import add_layer_norm_call

__all__ = ["LayerNorm", "RMSNorm", "drop_path_scale"]


def drop_path_scale(x: Tensor, drop_path: float) -> Tensor | None:
    """[B] factors of the branches of x [B, ...]: 0 with probability ``drop_path``, else what makes up for it."""
    if drop_path > 0:
        return F.dropout(torch.ones(x.shape[0], device=x.device), drop_path)
    return None


class LayerNorm(nn.LayerNorm):
    """Norm over the last dimension in the compute dtype: under autocast it takes and gives autocast's, not float32.

    Statistics are float32. Ba et al., arXiv:1607.06450.
    """

    def __init__(self, dim: int, eps: float = 1e-6, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dim, eps=eps, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return torch.ops.vmamba.add_layer_norm(x, None, None, self.weight, self.bias, self.eps)[1]
        return add_layer_norm_call(x, None, None, self.weight, self.bias, self.eps, "auto")[1]

    def add(self, x: Tensor, branch: Tensor, drop_path: float) -> tuple[Tensor, Tensor]:
        """``x + DropPath(branch)`` and its norm, in one pass.

        Args:
            x: [B, ..., C] residual stream.
            branch: The same shape.
            drop_path: Probability of an image's branch to be dropped in training; the others are scaled up.
        """
        scale = drop_path_scale(x, drop_path if self.training else 0.0)
        if torch.jit.is_scripting():
            total, y, _, _ = torch.ops.vmamba.add_layer_norm(x, branch, scale, self.weight, self.bias, self.eps)
            return total, y
        return add_layer_norm_call(x, branch, scale, self.weight, self.bias, self.eps, "auto")[:2]


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in the dtype of its input, given in that of its weight.

    So a float32 residual stream feeds blocks in bfloat16. Zhang and Sennrich, arXiv:1910.07467.
    """

    def __init__(self, dim: int, eps: float = 1e-5, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(self.weight.dtype)
