"""Weights for the backbone: reading them from wherever they are, and bringing them to its names."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from safetensors.torch import load_file
from timm.models import load_state_dict_from_hf
from torch import Tensor

from vmamba._timm import download_cached_file
from vmamba.errors import UserError
from vmamba.models._checkpoint import open_envelope
from vmamba.models._safe_load import load_safely

if TYPE_CHECKING:
    from .backbone import TimmFeatureBackbone

__all__ = ["native_state", "pretrained_weights", "read_weights"]

_NORM = re.compile(r"outnorm\d+\.")
SHOWN_KEYS = 3


def pretrained_weights(model_name: str, model_args: Mapping[str, Any]) -> dict[str, Tensor]:
    """The pretrained weights that timm knows for a model, under the backbone's names.

    Raises:
        UserError: There is none, or it cannot be had.
    """
    try:
        state = timm.create_model(model_name, pretrained=True, num_classes=0, **model_args).state_dict()
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"no pretrained weights for {model_name} ({_first_line(error)}); write pretrained=False, or a file"
        ) from error
    return {f"model.{k}": v for k, v in state.items()}


def read_weights(source: str) -> dict[str, Tensor]:
    """A state dict, its wrappers taken off.

    Args:
        source: A file, an ``https://`` address, or ``hf-hub:`` and a repository. Pickled files are read without
            running code that they name.

    Raises:
        UserError: Nothing there, or not readable.
    """
    if source.startswith("hf-hub:"):
        return open_envelope(load_state_dict_from_hf(source.removeprefix("hf-hub:"), weights_only=True))
    if re.match(r"https?://", source):
        source = download_cached_file(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {source}; write a file, an https:// address, hf-hub:OWNER/NAME, or "
            "pretrained=True for the published weights")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_safely(path)[0]
    except ValueError as error:
        raise UserError(str(error)) from error
    return open_envelope(content)


def native_state(backbone: "TimmFeatureBackbone", state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict of ``backbone`` out of a checkpoint in any layout that the model's family knows.

    Takes the layout of this class (``model.*``, ``outnorm{i}.*``), that of the model itself, and through the family's
    ``checkpoint_filter_fn`` those of the authors, with ``outnorm{i}.*`` where the checkpoint is a detector's.

    Args:
        backbone: Whom the weights are for.
        state: The weights, without the prefix of a detector.
        source: What the checkpoint is called in messages.

    Raises:
        UserError: The weights do not fit.
    """
    own = backbone.state_dict()
    norms = {k: v for k, v in state.items() if _NORM.match(k)}
    if norms and not backbone.out_norm:
        raise UserError(f"{source} has a norm for each map: write out_norm=True for {backbone.model_name}")
    if any(k.startswith("model.") for k in state):
        model = {k: v for k, v in state.items() if k.startswith("model.")}
    else:
        model = {f"model.{k}": v for k, v in _through_timm(backbone, state, source).items()}
    model = {k: v for k, v in model.items() if k.removeprefix("model.") not in backbone.removed_keys}
    found = {**model, **{k: v for k, v in norms.items() if k in own}}
    _require_fit(found, own, backbone.model_name, source)
    return found


def _through_timm(backbone: "TimmFeatureBackbone", state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights as timm's own loading gives them: it knows the family's filter, and adapts the first convolution."""
    try:
        donor = timm.create_model(
            backbone.model_name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"state_dict": state},
            **backbone.model_args)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"{source} is no checkpoint of {backbone.model_name}: write the model_name that it was trained with, or a "
            f"checkpoint of this one ({_first_line(error)})") from error
    return donor.state_dict()


def _require_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], model_name: str, source: str) -> None:
    """Raise unless every weight of the model is there in its shape; norms of maps may be missing."""
    faults = {
        "missing": [k for k in own if k not in state and not _NORM.match(k)],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [k for k in own if k in state and state[k].shape != own[k].shape],
    }
    if any(faults.values()):
        parts = [f"{len(keys)} {kind}, e.g. {', '.join(keys[:SHOWN_KEYS])}" for kind, keys in faults.items() if keys]
        raise UserError(
            f"{source} is no checkpoint of {model_name}: write the model_name that it was trained with, or a "
            f"checkpoint of this one ({'; '.join(parts)})")


def _first_line(error: Exception) -> str:
    """The first line of a message, cut where it lists keys by the hundred."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:200].rsplit(",", 1)[0] + ", ..."
