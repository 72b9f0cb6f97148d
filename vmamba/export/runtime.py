"""Exported files as functions from images to logits."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vmamba.ops  # noqa: F401  (programs call its operators)

from ..errors import UserError, require

__all__ = ["ENDINGS", "KEY", "Exported", "ending", "load_exported"]

KEY = "vmamba"
"""Under which files keep what a checkpoint says about its model."""
ENDINGS = {".onnx": "ONNX", ".aoti.pt2": "AOTInductor package", ".pt2": "torch.export archive", ".pt": "TorchScript"}
"""Formats by the ends of file names; the first that fits counts."""


class Exported:
    """An exported classifier, ready to run.

    Attributes:
        description: what the file says about its model, JSON text.
        run: images [B, C, H, W] -> logits [B, classes], on the device that it was loaded for.
    """

    def __init__(self, description: str, run: Callable[[Tensor], Tensor]) -> None:
        self.description, self.run = description, run

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images)


def ending(path: str | Path) -> str | None:
    """Returns the end of a file name that says its format, None for others."""
    return next((known for known in ENDINGS if str(path).endswith(known)), None)


def load_exported(path: str | Path, device: torch.device | str = "cpu", threads: int | None = None) -> Exported:
    """Reads a file of tools/export.py.

    Args:
        path: the file; its end says the format.
        device: where to run it.
        threads: of onnxruntime; None for its own choice. PyTorch's formats take `torch.set_num_threads`.

    Raises:
        UserError: the file is missing, damaged or not of tools/export.py, cannot run on this device, or its runtime
            is not installed.
    """
    path, device = Path(path), torch.device(device)
    known = ending(path)
    if known is None:
        raise UserError(f"exported model {path} must end in {', '.join(ENDINGS)}")
    if not path.is_file():
        raise UserError(f"exported model {path} does not exist")
    try:
        if known == ".onnx":
            return _load_onnx(path, device, threads)
        return {".pt2": _load_program, ".pt": _load_torchscript, ".aoti.pt2": _load_package}[known](path, device)
    except UserError:
        raise
    except Exception as error:  # each runtime has its own way to refuse a file
        raise UserError(f"cannot read {ENDINGS[known]} {path}: {error}") from error


def _described(path: Path, description: Any) -> str:
    if not description:
        raise UserError(f"{path} does not say what it classifies: it was not written by tools/export.py")
    return description.decode() if isinstance(description, bytes) else description


def _load_onnx(path: Path, device: torch.device, threads: int | None) -> Exported:
    runtime = require("onnxruntime", extra="export")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type, device.type)
    available = runtime.get_available_providers()
    if provider not in available:
        raise UserError(f"this onnxruntime cannot run on {device}, only by {', '.join(available)}")
    options = runtime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(path, options, providers=[provider])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    description = _described(path, session.get_modelmeta().custom_metadata_map.get(KEY))

    def run(batch: Tensor) -> Tensor:
        (found,) = session.run([logits.name], {images.name: batch.cpu().numpy()})
        return torch.from_numpy(found).to(batch.device)

    return Exported(description, run)


def _load_program(path: Path, device: torch.device) -> Exported:
    extra = {KEY: ""}
    program = torch.export.load(path, extra_files=extra)
    return Exported(_described(path, extra[KEY]), program.module().to(device))


def _load_torchscript(path: Path, device: torch.device) -> Exported:
    extra = {KEY: ""}
    module = torch.jit.load(path, map_location=device, _extra_files=extra)
    return Exported(_described(path, extra[KEY]), module)


def _load_package(path: Path, device: torch.device) -> Exported:
    package = torch._inductor.aoti_load_package(str(path))
    metadata = package.get_metadata()
    made_for = metadata.get("AOTI_DEVICE_KEY", "cpu")
    if made_for != device.type:
        raise UserError(f"{path} was made for {made_for}, not {device.type}: export it again with --device {device}")
    return Exported(_described(path, metadata.get(KEY)), package)
