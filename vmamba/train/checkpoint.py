"""Checkpoints: weights as safetensors with a description of the model, and the full state for resuming.

The description (`describe`) is all that validate.py and predict.py need to rebuild the classifier: architecture,
model arguments, classes and input preprocessing. In a `.safetensors` file it is the JSON text of the metadata key
`vmamba`. Nothing here unpickles anything but tensors and plain containers.
"""
import json
import pickle
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from .run_directory import atomic_path

__all__ = ["Description", "ema_sibling", "load_state", "load_weights", "save_state", "save_weights"]

_KEY = "vmamba"


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


def save_weights(path: Path, state_dict: dict[str, Tensor], description: Description) -> None:
    """Writes weights and description to a `.safetensors` file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    metadata = {"format": "pt", _KEY: json.dumps(asdict(description), ensure_ascii=False)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


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
    return weights, Description(**description) if ours else None


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
        description = Description(**json.loads(metadata[_KEY])) if _KEY in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read checkpoint {path}: {error}") from error
    return weights, description


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
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


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes the full state of a run (tensors and plain containers only), whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Reads what `save_state` wrote; raises a `UserError` if it cannot."""
    state = _torch_load(path)
    if not isinstance(state, dict) or "description" not in state:
        raise UserError(f"{path} is not the state of a run")
    return state
