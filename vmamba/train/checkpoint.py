"""Checkpoints: weights as safetensors with a description of the model, and the full state for resuming.

The description is all that validate.py and predict.py need to rebuild the classifier: architecture, model arguments,
classes and input preprocessing. In a `.safetensors` file it is the JSON text of the metadata key `vmamba`. Nothing
here unpickles anything but tensors and plain containers.

Both kinds of file carry a SHA-256: weights, one of the tensors and the description, as metadata key `sha256`; states,
one of all bytes before it, as last line. A file that was cut short, or in which a bit changed, is refused.
"""
import hashlib
import io
import json
import pickle
import re
import struct
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ..errors import UserError
from .run_directory import RunDirectory, atomic_path, sync_folder

__all__ = ["FILE_ARGUMENTS", "Description", "ema_sibling", "load_newest_state", "load_state", "load_weights",
           "require_finite", "save_state", "save_weights"]

_KEY = "vmamba"
_DIGEST_KEY = "sha256"
_TRAILER = re.compile(rb"\nvmamba sha256 ([0-9a-f]{64})\n\Z")
_TRAILER_LENGTH = 80
_KINDS = {"architecture": str, "num_classes": int, "in_chans": int, "model_args": dict, "label_names": list,
          "data_config": dict, "dataset": str, "epoch": int, "metrics": dict}
# arguments of timm.create_model that name files or places to fetch weights from
FILE_ARGUMENTS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}


@dataclass
class Description:
    """What a checkpoint says about its model.

    Attributes:
        architecture: timm model name.
        num_classes: classes of the head.
        in_chans: input channels.
        model_args: further arguments of `timm.create_model`.
        label_names: class names by index.
        data_config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode.
        dataset: bundled dataset or timm dataset it was trained on, "" for a folder.
        epoch: epochs trained.
        metrics: validation results of this checkpoint, accuracies in percent.

    Raises:
        ValueError: values of other types, or arguments that would make timm read or fetch files: whoever made a
            checkpoint does not decide that.
    """

    architecture: str
    num_classes: int
    in_chans: int = 3
    model_args: dict[str, Any] = field(default_factory=dict)
    label_names: list[str] = field(default_factory=list)
    data_config: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"its description has {name} {getattr(self, name)!r}, which is no {kind.__name__}")
        if not all(isinstance(name, str) for name in self.label_names) or len(self.label_names) not in (
                0, self.num_classes):
            raise ValueError(f"its description has no name for each of its {self.num_classes} classes")
        refused = FILE_ARGUMENTS & self.model_args.keys()
        if refused:
            raise ValueError(f"its description has the model argument {min(refused)}, which no checkpoint may give")


def save_weights(path: Path, state_dict: dict[str, Tensor], description: Description) -> None:
    """Writes weights and description to a `.safetensors` file, whole or not at all.

    Raises:
        UserError: the weights are not finite, or the file cannot be written.
    """
    require_finite(state_dict, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    text = json.dumps(asdict(description), ensure_ascii=False)
    metadata = {"format": "pt", _KEY: text, _DIGEST_KEY: _digest(tensors, text)}
    _write(path, to_safetensors(tensors, metadata=metadata))


def require_finite(state_dict: dict[str, Tensor], path: Path) -> None:
    """Raises a `UserError` that names a tensor of `state_dict` which is not finite: it must not reach `path`."""
    floating = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
    if not floating:
        return
    finite = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    wrong = [name for name, good in zip(floating, finite, strict=True) if not good]
    if wrong:
        raise UserError(f"{path} is not written: {len(wrong)} of the model's tensors, such as {wrong[0]}, hold values "
                        "that are not finite; the files there are from before")


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of names, types, shapes and values of tensors, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, *parts: bytes | memoryview, previous: Path | None = None) -> None:
    with atomic_path(path, previous) as temporary, open(temporary, "wb") as file:
        file.writelines(parts)


def load_weights(path: str | Path, use_ema: bool = False) -> tuple[dict[str, Tensor], Description | None]:
    """Reads the weights of a checkpoint, and its description if it has one.

    Args:
        path: a `.safetensors` file, a PyTorch file (bare weights, or inside `model`, `state_dict`, ...), or the
            `resume.pt` of a run.
        use_ema: take the averaged weights.

    Raises:
        UserError: the file is missing, damaged, holds no weights, or no averaged ones.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder: give a file in it, such as model_best.safetensors")
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    if path.suffix == ".safetensors":
        return _load_safetensors(ema_sibling(path) if use_ema else path)
    content = _torch_load(path)
    description: Any = content.get("description") if isinstance(content, dict) else None
    ours = isinstance(description, dict) and "architecture" in description
    weights = _unwrap(content, use_ema)
    if weights is None:
        raise UserError(f"checkpoint {path} holds no {'averaged ' if use_ema else ''}weights")
    try:
        return weights, Description(**description) if ours else None
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot read checkpoint {path}: {error}") from error


def ema_sibling(path: Path) -> Path:
    """Returns the file with the averaged weights that belong to `path`; raises a `UserError` if there is none."""
    if path.stem.endswith("_ema"):
        return path
    sibling = path.with_name(f"{path.stem}_ema{path.suffix}")
    if not sibling.is_file():
        raise UserError(f"no averaged weights for {path}: {sibling.name} is not beside it")
    return sibling


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Description | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
        if (_KEY in metadata) != (_DIGEST_KEY in metadata) or (
                _KEY in metadata and metadata[_DIGEST_KEY] != _digest(weights, metadata[_KEY])):
            raise ValueError("it is damaged: its SHA-256 is not the one written into it")
        description = Description(**json.loads(metadata[_KEY])) if _KEY in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read checkpoint {path}: {error}") from error
    return weights, description


def _torch_load(path: Path, checked: bool = False) -> Any:
    """Reads a PyTorch file; with `checked`, only one that ends with its SHA-256."""
    try:
        content = memoryview(path.read_bytes())
        match = _TRAILER.search(content[-_TRAILER_LENGTH:])
        if match is None and checked:
            raise ValueError("it is incomplete, or not written by tools/train.py")
        if match is not None:
            content = content[:-len(match[0])]
            if hashlib.sha256(content).hexdigest().encode() != match[1]:
                raise ValueError("it is damaged: its SHA-256 is not the one written into it")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"checkpoint {path} is damaged or holds pickled objects, which are not loaded; if you trust an "
                        "official one, convert it with tools/convert_checkpoint.py") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, struct.error) as error:
        raise UserError(f"cannot read checkpoint {path}: {error}") from error


def _unwrap(content: Any, use_ema: bool) -> dict[str, Tensor] | None:
    """Finds the weights in what a PyTorch file held."""
    if not isinstance(content, dict):
        return None
    for key in ("state_dict_ema", "model_ema") if use_ema else ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            return content[key]
    bare = bool(content) and all(isinstance(value, Tensor) for value in content.values())
    return content if bare and not use_ema else None


def save_state(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Writes the full state of a run (tensors and plain containers only), whole or not at all.

    Args:
        path: the file.
        state: what goes into it.
        previous: what the file there is renamed to.

    Raises:
        UserError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    _write(path, buffer.getbuffer(), f"\nvmamba sha256 {digest}\n".encode(), previous=previous)


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote; raises a `UserError` if it is missing, incomplete or damaged."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    state = _torch_load(path, checked=True)
    if not isinstance(state, dict) or "description" not in state:
        raise UserError(f"{path} is not the state of a run")
    return state


def load_newest_state(run: RunDirectory, put_aside: bool = True) -> dict[str, Any] | None:
    """Reads the newest state of a run that can be read, None if it has saved none yet.

    A damaged one is named on stderr and put aside, so that the next save does not push the good one out.

    Args:
        run: the run.
        put_aside: rename a damaged file; one process of a run does that.

    Raises:
        UserError: there are states, but none can be read.
    """
    paths = [path for path in (run.state, run.previous_state) if path.exists()]
    for path in paths:
        try:
            state = load_state(path)
        except UserError as error:
            if path == paths[-1]:
                raise
            print(f"warning: {error}; continuing from {run.previous_state.name}", file=sys.stderr)
            continue
        if path != paths[0] and put_aside:
            run.state.replace(run.damaged_state)
            sync_folder(run.path)
        return state
    return None
