"""Whether an operator may stand for modules."""
import torch
from torch import Tensor, nn

from vmamba.ops._library import is_plain as is_plain_cuda

__all__ = ["is_compiled_for_gpu", "is_plain", "runs_alone_on_gpu"]


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether it is of this very class and without hooks: adapters, parametrisations and hooks have to be called."""
    return (
        type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks
        and not module._backward_hooks and not module._backward_pre_hooks)


def is_compiled_for_gpu(x: Tensor) -> bool:
    """Whether a compiler, which calls operators as they are, follows x, and it is on a GPU."""
    # not is_compiling() without is_exporting(): torch.compile takes the latter for true within its graphs
    return torch.compiler.is_dynamo_compiling() and x.is_cuda


def runs_alone_on_gpu(x: Tensor) -> bool:
    """Whether x is on a GPU and nothing looks inside, but a compiler that calls operators as they are."""
    return is_compiled_for_gpu(x) or is_plain_cuda(x)
