"""Initial values that every selective state-space module shares."""
import math

import torch
from torch import Tensor

__all__ = ["reset_ssm_parameters"]


def reset_ssm_parameters(
        A_log: Tensor, D: Tensor, dt_weight: Tensor, dt_bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1,
        dt_floor: float = 1e-4,
) -> None:
    """Fill in place: S4D-real decay rates ``A = -(1 .. N)``, unit skip, step sizes log-uniform in [dt_min, dt_max].

    Gu and Dao, "Mamba", arXiv:2312.00752, section 3.6.

    Args:
        A_log: [..., N].
        D: Skip weights, any shape.
        dt_weight: [..., D, R].
        dt_bias: Bias of the step sizes before their softplus, any shape.
        dt_min: Smallest step size drawn.
        dt_max: Largest step size drawn.
        dt_floor: Smallest step size kept.
    """
    with torch.no_grad():
        rates = torch.arange(1, A_log.shape[-1] + 1, device=A_log.device, dtype=torch.float32)
        A_log.copy_(rates.log().expand_as(A_log))
        D.fill_(1.0)
        bound = dt_weight.shape[-1] ** -0.5
        dt_weight.uniform_(-bound, bound)
        log_dt = torch.empty_like(dt_bias, dtype=torch.float32).uniform_(math.log(dt_min), math.log(dt_max))
        dt = log_dt.exp().clamp(min=dt_floor)
        dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
