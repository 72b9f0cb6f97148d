"""Writing a classifier in each format. The files are complete; whether they answer right is not looked at here."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError, require
from .operators import InTorch
from .program import require_size, trace
from .runtime import KEY

__all__ = ["WRITERS"]

MAX_PROTOBUF = 1_900_000_000  # bytes of weights in one file; protobuf ends at 2 GiB


def write_onnx(model: nn.Module, input_size: Sequence[int], fixed_size: bool, description: str, path: Path) -> None:
    """ONNX with inputs ``images`` [batch, C, height, width] and outputs ``logits`` [batch, classes].

    Weights beyond protobuf's limit go to a file ``<name>.data`` beside it.

    Raises:
        UserError: a package is missing, or the model cannot be traced or has an operator without translation.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, extra="export")
    from .onnx_scan import to_onnx  # it needs onnxscript

    program = trace(InTorch(model, walks=True), input_size, fixed_size)
    try:
        translated = to_onnx(program)
    except torch.onnx.OnnxExporterError as error:
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(f"the model cannot be translated to ONNX: {cause}") from error
    translated.model.metadata_props[KEY] = description
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    translated.save(path, external_data=size > MAX_PROTOBUF)


def write_program(model: nn.Module, input_size: Sequence[int], fixed_size: bool, description: str, path: Path) -> None:
    """An archive of ``torch.export``, which calls the operators of the suite.

    Raises:
        UserError: the model cannot be traced, or not for its own size of images.
    """
    program = trace(model, input_size, fixed_size)
    require_size(program, input_size)
    torch.export.save(program, path, extra_files={KEY: description})


def write_torchscript(
        model: nn.Module, input_size: Sequence[int], fixed_size: bool, description: str, path: Path) -> None:
    """TorchScript, scripted: any size of images, and the operators of the suite.

    Raises:
        UserError: the model cannot be scripted.
    """
    try:
        scripted = torch.jit.script(model)
    except (RuntimeError, torch.jit.frontend.FrontendError) as error:
        raise UserError(f"the model cannot be scripted: {error}") from error
    scripted.save(path, _extra_files={KEY: description})


def write_package(model: nn.Module, input_size: Sequence[int], fixed_size: bool, description: str, path: Path) -> None:
    """A package of AOTInductor: compiled code for the device that the model is on.

    Raises:
        UserError: the model cannot be traced, or not for its own size of images.
    """
    program = trace(InTorch(model, walks=False), input_size, fixed_size)
    require_size(program, input_size)
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs={"aot_inductor.metadata": {KEY: description}})


WRITERS: dict[str, Callable[[nn.Module, Sequence[int], bool, str, Path], None]] = {
    ".onnx": write_onnx, ".pt2": write_program, ".pt": write_torchscript, ".aoti.pt2": write_package}
"""What writes a format, by its ending in :data:`vmamba.export.runtime.ENDINGS`."""
