"""Random orders, the same for the same seed: what a model does without any neighbourhood.

Chen et al., "RSMamba: Remote Sensing Image Classification with State Space Model", arXiv:2403.19654, has a shuffled
path besides the forward and the reversed one.
"""
from __future__ import annotations

import torch
from torch import Tensor

from .registry import register_alias, register_numbered_path

__all__: list[str] = []


@register_numbered_path("random_seed")
def _random(height: int, width: int, seed: int) -> Tensor:
    """A permutation of the tokens, drawn for this seed and number of tokens."""
    if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
        raise ValueError("random orders are drawn for a size, so a graph for any size cannot compute them")
    return torch.randperm(height * width, generator=torch.Generator("cpu").manual_seed(seed))


register_alias("random", "random_seed0")
register_alias("random4", "random_seed0+random_seed1+random_seed2+random_seed3")
