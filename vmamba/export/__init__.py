"""Classifiers as files that run without this package, or without Python: ONNX, torch.export, TorchScript, AOTInductor.

What a file needs when it runs: ONNX nothing of ours; the others call ``torch.ops.vmamba`` where the model does, which
``import vmamba`` registers.
"""
from .check import TOLERANCE, Difference, differences
from .files import WRITERS
from .runtime import ENDINGS, Exported, ending, load_exported

__all__ = ["ENDINGS", "TOLERANCE", "WRITERS", "Difference", "Exported", "differences", "ending", "load_exported"]
