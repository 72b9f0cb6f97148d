"""What every launcher needs: checks, allocation, and which arithmetic the device offers."""

from functools import cache, lru_cache
from inspect import signature
from typing import Any, NamedTuple

import torch
import triton


@lru_cache(maxsize=1 << 12)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised tensor. The tests replace it by one that fills with NaN: an unwritten output cannot pass."""
    # torch.empty, which looks for named axes first, costs the host twice as much
    return torch.empty_strided(shape, _strides(shape), dtype=dtype, device=device)


def empty_like(t: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Uninitialised contiguous tensor of the shape of ``t``, whose last axis is contiguous; replaced likewise."""
    return torch.empty_like(t) if dtype in (None, t.dtype) else torch.empty_like(t, dtype=dtype)


@cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (on CPU tensors)."""
    return bool(triton.knobs.runtime.interpret)


@cache
def fast_math() -> bool:
    """Whether the PTX approximate instructions can be used: an NVIDIA device, not the interpreter, not ROCm."""
    return not interpreted() and torch.version.hip is None


def check_device(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors share one device that the kernels can run on."""
    first, *others = [t for t in tensors.values() if t is not None]
    index = first.get_device()
    if first.is_cuda and not [t for t in others if t.get_device() != index]:
        return
    device = first.device
    for name, t in tensors.items():
        if t is not None and t.device != device:
            raise ValueError(f"{name} is on {t.device}, the first argument on {device}; all must share one device")
    if device.type != "cuda" and not interpreted():
        raise ValueError(
            f"Triton kernels need CUDA tensors, got {device}; set TRITON_INTERPRET=1 before import to run them on CPU"
        )


def check_shape(name: str, t: Any, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless ``t``, a tensor or what is known of one, has this shape."""
    if t.shape != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {tuple(shape)} = {meaning}")


def rows_contiguous(t: torch.Tensor) -> torch.Tensor:
    """``t`` with a last axis of stride 1, copied only if needed."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def pow2(n: int, least: int = 16) -> int:
    """Smallest power of two that is >= n and >= least."""
    return max(least, 1 << (n - 1).bit_length())


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. Triton's own costs the host ten times as much."""
    return -(-a // b)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which outputs are written: float16 has too little range for scan outputs and becomes float32."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


class _Compiled(NamedTuple):
    """A kernel ready to run for arguments of one kind."""

    run: Any  # Triton's launcher
    function: int
    metadata: Any
    constants: tuple


_kernels: dict[tuple, _Compiled] = {}
_warm: set[tuple] = set()  # kinds, but for what their twins differ in, whose twins are compiled
_MOST_KINDS = 1 << 14


def _compile(kernel: Any, grid: tuple[int], arguments: tuple, how: dict[str, Any], twin: dict[str, Any]) -> _Compiled:
    """Launch ``kernel`` as Triton does, and say how to do so again."""
    made = kernel[grid](*arguments, **how)
    if twin:
        types = (t.dtype if isinstance(t, torch.Tensor) else None for t in arguments)
        kind = (kernel, *types, *(value for name, value in how.items() if name not in twin))
        if kind not in _warm:
            kernel.warmup(*arguments, grid=grid, **{**how, **twin})
            _warm.add(kind)
    names = kernel.arg_names[len(arguments) :]
    return _Compiled(made.run, made.function, made.packed_metadata, tuple(how[name] for name in names))


@cache
def _pointers(function: Any) -> int:
    """How many of the arguments of a kernel's function are pointers; they come first and are named so."""
    return sum(name.endswith("_ptr") for name in signature(function).parameters)


def launch(kernel: Any, grid: tuple[int], *arguments: Any, twin: Any = None, **how: Any) -> None:
    """``kernel[grid](*arguments, **how)`` with less work for the host from the second launch of a kind on.

    Triton looks at every argument at every launch; here what it found for the same types, alignments, sizes and
    constants is kept. Its hooks for profilers, which cost as much as the rest, are called at the first launch only.

    Args:
        kernel: Its pointers come first, the very first not None, and have names that end in "_ptr".
        grid: Number of programs.
        arguments: Tensors (or None) and numbers.
        twin: Constants by name that another image size may need; compiled as well at the first launch of a kind, so
            that size waits for no compiler.
        how: Constants and options of the launch.
    """
    if interpreted():
        assert arguments[0] is not None, f"the first pointer of {kernel} is None"
        kernel[grid](*arguments, **how)
        return
    device = arguments[0].get_device()
    if device != torch._C._cuda_getDevice():  # the addresses mean nothing on another device
        with torch.cuda.device(device):
            launch(kernel, grid, *arguments, twin=twin, **how)
        return
    function = kernel.fn  # the kernel itself takes a lock to find its hash
    count = _pointers(function)
    pointers, kinds, odd = [], [], 0
    for t in arguments[:count]:
        if t is None:
            pointers.append(None)
            kinds.append(None)
        else:
            p = t.data_ptr()
            pointers.append(p)
            odd |= p
            # with the devices: a tensor that lies elsewhere is of no known kind, and Triton refuses it
            kinds += t.dtype, t.get_device()
    if odd & 15:
        kinds += [p and p & 15 for p in pointers]
    rest = arguments[count:]
    key = (function, *kinds, *rest, *how.values())
    found = _kernels.get(key)
    if found is None:
        if len(_kernels) >= _MOST_KINDS:
            _kernels.clear()
        _kernels[key] = _compile(kernel, grid, arguments, how, twin or {})
        return
    stream = torch._C._cuda_getCurrentRawStream(device)
    found.run(
        grid[0], 1, 1, stream, found.function, found.metadata, None, None, None, *pointers, *rest, *found.constants
    )
