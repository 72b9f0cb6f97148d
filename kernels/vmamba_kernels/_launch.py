"""What every launcher needs: checks, allocation, and which arithmetic the device offers."""

from typing import Any

import torch
import triton


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Uninitialised tensor. The tests replace it by one that fills with NaN: an unwritten output cannot pass."""
    return torch.empty(shape, dtype=dtype, device=device)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (on CPU tensors)."""
    return bool(triton.knobs.runtime.interpret)


def fast_math() -> bool:
    """Whether the PTX approximate instructions can be used: an NVIDIA device, not the interpreter, not ROCm."""
    return not interpreted() and torch.version.hip is None


def check_device(**tensors: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors share one device that the kernels can run on."""
    given = {name: t for name, t in tensors.items() if t is not None}
    device = next(iter(given.values())).device
    for name, t in given.items():
        if t.device != device:
            raise ValueError(f"{name} is on {t.device}, the first argument on {device}; all must share one device")
    if device.type != "cuda" and not interpreted():
        raise ValueError(
            f"Triton kernels need CUDA tensors, got {device}; set TRITON_INTERPRET=1 before import to run them on CPU"
        )


def check_shape(name: str, t: torch.Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless ``t`` has this shape."""
    if tuple(t.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {shape} = {meaning}")


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


_launchers: dict[tuple, tuple[Any, tuple]] = {}
_compiled: set[tuple] = set()


def launch(kernel: Any, grid: tuple[int], *arguments: Any, **how: Any) -> None:
    """``kernel[grid](*arguments, **how)`` with less work for the host from the second launch of a kind on.

    Triton looks at every argument at every launch; here what it found for arguments of the same kind is kept. The
    kind is what Triton specialises on: types, whether pointers and integers are multiples of 16, and constants.
    """
    if interpreted():
        kernel[grid](*arguments, **how)
        return
    device = torch.cuda.current_device()
    kind = (kernel, device, *[
        (a.dtype, a.data_ptr() & 15 == 0) if isinstance(a, torch.Tensor)
        else (a == 1, a & 15 == 0, a < 2**31) if isinstance(a, int) else type(a)
        for a in arguments
    ], *how.values())  # fmt: skip
    found = _launchers.get(kind)
    if found is None:
        names = kernel.arg_names[len(arguments) :]
        _launchers[kind] = kernel[grid](*arguments, **how), tuple(how[name] for name in names)
    else:
        stream = torch._C._cuda_getCurrentRawStream(device)
        found[0][grid[0], 1, 1](*arguments, *found[1], stream=stream)


def in_both_variants(kernel: Any, grid: tuple[int], arguments: tuple, *, even: bool, **how: Any) -> None:
    """Launch ``kernel`` with ``EVEN=even``; at the first launch of its kind compile the other variant too.

    So a later image size waits for no compiler, whether it is a whole number of tiles or not.
    """
    kind = (kernel, *(t.dtype if isinstance(t, torch.Tensor) else None for t in arguments), *how.values())
    if kind not in _compiled and not interpreted():
        kernel.warmup(*arguments, grid=grid, EVEN=not even, **how)
        _compiled.add(kind)
    launch(kernel, grid, *arguments, EVEN=even, **how)
