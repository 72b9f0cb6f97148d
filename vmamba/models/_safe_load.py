"""Reading checkpoints that pickle foreign objects beside their weights, without running any code they name."""
from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

__all__ = ["STAND_INS", "load_safely"]


class _Mapping:
    """Stands for a dict subclass: unpickles to a plain OrderedDict, which torch fills with the pickled items."""

    def __new__(cls, *args: object) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


class _Ignored:
    """Stands for anything else: takes whatever it is built from and keeps none of it."""

    def __new__(cls, *args: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


STAND_INS: dict[str, type] = {
    "yacs.config.CfgNode": _Mapping,
    "argparse.Namespace": _Ignored,
    "pathlib.PosixPath": _Ignored,
    "pathlib.WindowsPath": _Ignored,
    "numpy.dtype": _Ignored,
    "numpy.ndarray": _Ignored,
    "numpy.core.multiarray.scalar": _Ignored,
    "numpy._core.multiarray.scalar": _Ignored,
    "numpy.core.multiarray._reconstruct": _Ignored,
    "numpy._core.multiarray._reconstruct": _Ignored,
    # logs of mmengine's Runner, beside the weights of detectors and segmentors; their methods are pickled by getattr,
    # which is not called either
    "mmengine.logging.history_buffer.HistoryBuffer": _Ignored,
    "builtins.getattr": _Ignored,
}
"""The global a checkpoint may name, and the inert class it unpickles to."""


def load_safely(path: Path) -> tuple[Any, list[str]]:
    """Read a torch.save file with tensors as they are and foreign objects as inert stand-ins.

    Args:
        path: The file.

    Returns:
        The file's content, and the foreign names that stand-ins replaced.

    Raises:
        ValueError: The file cannot be read, is damaged, or names a global that is neither torch's nor in
            :data:`STAND_INS`. One line; nothing of the file was run.
    """
    try:
        # files older than torch 1.6 are no zip archives and cannot be listed: there torch itself names what it refuses
        named = sorted(get_unsafe_globals_in_checkpoint(path)) if zipfile.is_zipfile(path) else []
        refused = [name for name in named if name not in STAND_INS]
        if refused:
            raise ValueError(f"{path} is refused, nothing of it was run: it names {', '.join(refused)}")
        with safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()]):
            return torch.load(path, map_location="cpu", weights_only=True), named
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or _one_line(error)}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names {found.group(1)}" if found else f"it is no checkpoint of tensors ({_one_line(error)})"
        raise ValueError(f"{path} is refused, nothing of it was run: {reason}") from error
    except (RuntimeError, EOFError, AssertionError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no file of torch.save: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """The first sentence of an exception's message, for torch's run over several lines."""
    return re.split(r"\n|\. ", str(error).strip(), maxsplit=1)[0] or type(error).__name__
