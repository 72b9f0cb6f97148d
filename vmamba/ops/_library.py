"""The dispatcher library that holds every operator of the suite, ``torch.ops.vmamba.*``."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LIBRARY = torch.library.Library("vmamba", "DEF")


def new_like(t: Tensor) -> Tensor:
    """Uninitialised tensor of the shape of ``t``: [B, D, L] channels-last in memory where ``t`` is, else contiguous."""
    if _is_channels_last(t):
        return t.new_empty(t.mT.shape).mT
    return t.new_empty(t.shape)


def in_layout_of(like: Tensor, t: Tensor) -> Tensor:
    """``t`` in the layout that :func:`new_like` gives, copied only if it has another."""
    return t.mT.contiguous().mT if _is_channels_last(like) else t.contiguous()


def _is_channels_last(t: Tensor) -> bool:
    return t.ndim == 3 and t.mT.is_contiguous() and not t.is_contiguous()


def implements(name: str) -> Callable[[Callable], Callable]:
    """Decorator that registers an implementation of operator ``name``, for all devices.

    Where the function gives None among its outputs, the operator, which cannot, gives an empty tensor.
    """
    def register(function: Callable) -> Callable:
        LIBRARY.impl(name, lambda *arguments: _without_none(function(*arguments)), "CompositeExplicitAutograd")
        return function

    return register


def _without_none(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    like = next(t for t in outputs if t is not None)
    return type(outputs)([like.new_empty(0) if t is None else t for t in outputs])


def fit_gradients(grads: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients in their arguments' dtypes and layouts, None for an absent argument."""
    return [
        None if t is None or g is None
        else g if g.dtype is t.dtype and g.is_contiguous() and t.is_contiguous()
        else in_layout_of(t, g.to(t.dtype))
        for g, t in zip(grads, arguments, strict=True)]


def fake_gradients(arguments: Sequence[Tensor | None]) -> list[Tensor]:
    """What a backward operator returns of :func:`fit_gradients`, for the fake implementation."""
    like = next(t for t in arguments if t is not None)
    return [new_like(t) if t is not None else like.new_empty(0) for t in arguments]


def unpack_gradients(grads: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients as autograd takes them, None for an absent argument."""
    return [g if t is not None else None for g, t in zip(grads, arguments, strict=True)]


def casts_of(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor | None]:
    """Weights in ``dtype``, for a forward to keep: None for one that has it, since no output may be an argument.

    Those of one dtype cost a GPU's host one launch.
    """
    casts = [None if w.dtype is dtype else torch.empty_like(w, dtype=dtype) for w in weights]
    if made := [c for c in casts if c is not None]:
        torch._foreach_copy_(made, [w for w in weights if w.dtype is not dtype])
    return casts


def fake_casts(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What an operator returns of :func:`casts_of`, for the fake implementation."""
    return [w.new_empty(0, dtype=dtype) if w.dtype is dtype else torch.empty_like(w, dtype=dtype) for w in weights]


def with_casts(kept: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights again, from what :func:`casts_of` or an operator made of them."""
    return [w if k is None or not k.numel() else k for k, w in zip(kept, weights, strict=True)]


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient to the weight of ``linear(x, weight)`` from [T, E] and [T, D], in the weight's dtype.

    On a GPU the product is rounded to that dtype only, where x may have a narrower one.
    """
    if dy.is_cuda and weight.dtype is torch.float32 and dy.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(dy.t(), x, out_dtype=torch.float32)
    return (dy.t() @ x).to(weight.dtype)


def cast_under_autocast(name: str, arguments: Sequence[str]) -> None:
    """Make operator ``name`` take the named float arguments in autocast's dtype, as torch's own products do."""
    op = getattr(torch.ops.vmamba, name).default
    cast = _positions(name, arguments)
    for device in ("cuda", "cpu"):
        key = f"Autocast{device.upper()}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*given: Any, device: str = device, keys: Any = keys) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*_cast(given, cast, torch.get_autocast_dtype(device)))

        LIBRARY.impl(name, run, key)


def shortcut(
        name: str, forward: Callable, setup_context: Callable, backward: Callable, cast: Sequence[str] = (),
        results: int | None = None,
) -> Callable:
    """Operator ``name`` as a function that leaves out the dispatcher where nobody looks at it.

    The dispatcher's way through Python takes the host longer than many of these kernels take the device. So on CUDA
    tensors in plain eager mode the implementation is called at once; compilers, tracers, dispatch modes and other
    devices get the operator.

    Args:
        name: Of the operator.
        forward: Its implementation for CUDA tensors; what the kernels check need not be checked there.
        setup_context: As given to ``torch.library.register_autograd``.
        backward: Likewise.
        cast: Names of arguments that :func:`cast_under_autocast` casts.
        results: How many of the outputs callers take, who may get no others; autograd need not know what is only kept
            for the backward. None for all.
    """
    op = getattr(torch.ops.vmamba, name)    # with its overload picked, TorchScript would not take FX's graphs of it
    positions = _positions(name, cast)
    apply = node(forward, setup_context, backward, results)

    def call(*arguments: Any) -> Any:
        if not is_plain(arguments[0]):
            return op(*arguments)
        if positions:
            arguments = as_autocast(arguments, positions)
        return apply(*arguments) if torch.is_grad_enabled() else forward(*arguments)

    return call


def node(forward: Callable, setup_context: Callable, backward: Callable, results: int | None = None) -> Callable:
    """``forward`` as one node of autograd, for arguments of which :func:`is_plain` holds.

    Args:
        forward: Of the tensors and what else it takes.
        setup_context: As given to ``torch.library.register_autograd``.
        backward: Likewise.
        results: How many of the outputs callers get; None for all.
    """
    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            outputs = forward(*arguments)
            setup_context(ctx, arguments, outputs)
            return outputs if results is None else outputs[:results]

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            # what once_differentiable does is to refuse second derivatives, which only a graph of this one can ask for
            return (differentiable if torch.is_grad_enabled() else backward)(ctx, *gradients)

    differentiable = once_differentiable(backward)
    # torch's own wrapper of it looks for tensors of functorch in all arguments, which is_plain has done
    return super(torch.autograd.Function, Direct).apply


def as_autocast(arguments: tuple[Any, ...], positions: Iterable[int]) -> tuple[Any, ...]:
    """``arguments`` with the tensors at some positions in the dtype of autocast on a GPU, where that is on."""
    if not torch.is_autocast_enabled("cuda"):
        return arguments
    return _cast(arguments, positions, torch.get_autocast_dtype("cuda"))


def direct(name: str, implementation: Callable) -> Callable:
    """Operator ``name`` of a backward as a function that leaves out the dispatcher, as :func:`shortcut` does."""
    op = getattr(torch.ops.vmamba, name).default

    def call(*arguments: Any) -> Any:
        return (implementation if is_plain(arguments[0]) else op)(*arguments)

    return call


def is_plain(x: Any) -> bool:
    """Whether x is a CUDA tensor that no compiler, tracer, mode or transform follows."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter) and x.is_cuda and not torch._C._get_tracing_state()
        and not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._functorch.is_functorch_wrapped_tensor(x))


def _positions(name: str, arguments: Sequence[str]) -> frozenset[int]:
    schema = getattr(torch.ops.vmamba, name).default._schema
    return frozenset(i for i, argument in enumerate(schema.arguments) if argument.name in arguments)


def _cast(given: Sequence[Any], positions: Iterable[int], dtype: torch.dtype) -> tuple[Any, ...]:
    arguments = list(given)
    for i in positions:
        a = arguments[i]
        if a is not None and a.dtype is not dtype and a.dtype is not torch.float64:
            arguments[i] = a.to(dtype)
    return tuple(arguments)
