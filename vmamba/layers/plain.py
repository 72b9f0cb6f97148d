"""Whether an operator may stand for a module."""
from torch import nn

__all__ = ["is_plain"]


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of this very class and without hooks: adapters, parametrisations and hooks have to be called."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks
