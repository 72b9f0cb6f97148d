"""What every launcher needs: checks, allocation, and which arithmetic the device offers."""

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
    return max(least, triton.next_power_of_2(n))


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in which outputs are written: float16 has too little range for scan outputs and becomes float32."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
