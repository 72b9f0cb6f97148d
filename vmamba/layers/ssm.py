"""Initial values that every selective state-space module shares."""
import math

import torch
from torch import Tensor

__all__ = ["reset_ssd_parameters", "reset_ssm_parameters"]


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
        _reset_step_bias(dt_bias, dt_min, dt_max, dt_floor)


def reset_ssd_parameters(
        A_log: Tensor, D: Tensor, dt_bias: Tensor, dt_min: float = 1e-3, dt_max: float = 0.1, dt_floor: float = 1e-4,
) -> None:
    """Fill in place, for Mamba-2: decay rates uniform in [1, 16], the rest as :func:`reset_ssm_parameters`.

    Dao and Gu, "Transformers are SSMs", arXiv:2405.21060, appendix D.

    Args:
        A_log: One for each head, any shape.
        D: Skip weights, any shape.
        dt_bias: Bias of the step sizes before their softplus, any shape.
        dt_min: Smallest step size drawn.
        dt_max: Largest step size drawn.
        dt_floor: Smallest step size kept.
    """
    with torch.no_grad():
        A_log.uniform_(1, 16).log_()
        D.fill_(1.0)
        _reset_step_bias(dt_bias, dt_min, dt_max, dt_floor)


def _reset_step_bias(dt_bias: Tensor, dt_min: float, dt_max: float, dt_floor: float) -> None:
    """The inverse of the softplus of step sizes that are log-uniform in [dt_min, dt_max]."""
    log_dt = torch.empty_like(dt_bias, dtype=torch.float32).uniform_(math.log(dt_min), math.log(dt_max))
    dt = log_dt.exp().clamp(min=dt_floor)
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
