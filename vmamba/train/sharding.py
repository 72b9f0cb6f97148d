"""Sharded training (FSDP2): each process holds its part of parameters, averages, gradients and optimiser states.

What is saved is whole: a sharded run writes the files of any other, and may be resumed unsharded or by another number
of processes.
"""
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["load_module", "load_whole", "no_sync", "shard_optimizer_state", "shard_task", "whole", "whole_tensor"]


def shard_task(task: TrainingTask, device: torch.device) -> None:
    """Splits the model of a task, and its average, over all processes. Their parameters become `DTensor`s.

    Each block is gathered for its own forward and backward pass and let go afterwards, so that at no time a device
    holds more than one of them whole; what is outside of blocks is one more such part.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for module in (task.get_trainable_module(), task.get_trainable_module(ema=True)):
        if module is not None:
            _shard(unwrap_model(module), mesh)


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    for name, module in model.named_modules():
        if name.rpartition(".")[0].rpartition(".")[2] == "blocks":      # what timm calls the children of its stages
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def no_sync(task: TrainingTask) -> AbstractContextManager:
    """Returns the context of backward passes after which the processes need not exchange gradients yet."""
    module = unwrap_model(task.get_trainable_module())
    return _no_reduction(module) if isinstance(module, FSDPModule) else task.no_sync()


@contextmanager
def _no_reduction(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def whole_tensor(value: Tensor) -> Tensor:
    """Returns the whole of a tensor that may be split over the processes, which then all have to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole(tree: Any, keep: bool) -> Any:
    """Gathers the split tensors in nested dicts and lists, on the CPU; all processes have to call it.

    Args:
        tree: what `state_dict` methods return.
        keep: False drops each tensor as soon as it is gathered: one process needs the result.
    """
    if isinstance(tree, dict):
        return {key: whole(value, keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole(value, keep) for value in tree]
    if isinstance(tree, DTensor):
        value = tree.full_tensor()
        return value.cpu() if keep else None
    return tree


def load_whole(
    task: TrainingTask, state_dict: dict[str, Any], task_state: dict[str, Any] | None = None, ema: bool = False
) -> None:
    """Does what `TrainingTask.load_checkpoint_state` does, for a split model; every process has to have the weights."""
    load_module(unwrap_model(task.get_eval_model(ema=ema)), state_dict)
    task.load_task_state(task_state, ema=ema)


def load_module(module: nn.Module, state_dict: dict[str, Any], strict: bool = True) -> None:
    """Does what `Module.load_state_dict` does, also where parameters are split over the processes."""
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        set_model_state_dict(module, state_dict, options=StateDictOptions(full_state_dict=True, strict=strict))
    else:
        module.load_state_dict(state_dict, strict=strict)


def shard_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Splits the whole tensors of a loaded state as the parameters are that they belong to.

    Raises:
        ValueError: a tensor has another shape than its parameter.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if value.shape != parameter.shape:
                raise ValueError(f"--fsdp cannot split {key} of {type(optimizer).__name__}")
            # every process has read the same state: none has to send anything
            state[key] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
