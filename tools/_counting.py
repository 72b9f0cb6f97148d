"""Parameters, multiply-adds and activations of a model, without running it: on the meta device."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import vmamba  # noqa: F401  (its operators bring formulas of their own)


@dataclass(frozen=True)
class Counts:
    """What a model has, and a forward pass of one image or clip takes.

    Attributes:
        params: parameters.
        macs: multiply-adds of convolutions, matrix products and scans; norms and activation functions count nothing.
        activations: values that these write.
    """

    params: int
    macs: int
    activations: int


def count(model: nn.Module, *shape: int) -> Counts:
    """Counts as papers and timm do.

    Args:
        model: on the meta device.
        shape: of its input, such as 1, 3, 224, 224.
    """
    written: list[int] = []

    def noting(formula: Callable[..., int]) -> Callable[..., int]:
        """The formula of an operator, which also notes how much its first output holds; scans save states in others."""
        def run(*shapes: Any, out_shape: Any, **options: Any) -> int:
            written.append(math.prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0]))
            return formula(*shapes, out_val=out_shape, **options)
        return run

    formulas = {operator: noting(formula) for operator, formula in flop_registry.items()}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        # the counter follows modules by hooks on gradients, which parameters that are handed to modules would get
        model.eval().requires_grad_(False)(torch.empty(shape, device="meta"))
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counts(params, counter.get_total_flops() // 2, sum(written))
