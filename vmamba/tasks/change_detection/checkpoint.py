"""Official ChangeMamba checkpoints under this implementation's names."""
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vmamba.models._checkpoint import linear_weights, open_envelope, require_fit
from vmamba.models._vmamba_names import vmamba_native_name

from .models import ChangeModel

__all__ = ["checkpoint_filter_fn"]

# modules of the decoders by task: official name -> ours
_MODULES = {
    "bcd": {"decoder": "change_decoder", "main_clf": "change_head"},
    "scd": {
        "decoder_bcd": "change_decoder", "decoder_T1": "first_decoder", "decoder_T2": "second_decoder",
        "main_clf_cd": "change_head", "aux_clf": "semantic_head"},
    "bda": {
        "decoder_damage": "damage_decoder", "decoder_building": "building_decoder", "main_clf": "damage_head",
        "aux_clf": "building_head"},
}
_ARRANGEMENTS = {"1": "parallel", "2": "cross", "3": "sequential"}
_CONV_NORM = {"0": "conv", "1": "norm"}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: ChangeModel) -> dict[str, Tensor]:
    """Bring an official checkpoint of the model's task to this implementation's names; our own pass unchanged.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("encoder.backbone.") for k in state):
        state = {_native_name(k, _MODULES[model.task]): v for k, v in state.items()}
    state = linear_weights(state, model)
    require_fit(state, model)
    return state


def _native_name(key: str, modules: Mapping[str, str]) -> str:
    """Our name of an official parameter; unknown ones stay as they are, to be refused by name."""
    module, _, rest = key.partition(".")
    if module == "encoder":
        norm = re.match(r"outnorm(\d)\.(\w+)$", rest)
        return f"encoder.norms.{norm[1]}.{norm[2]}" if norm else (
            f"encoder.backbone.model.{vmamba_native_name(rest, False)}")
    if module not in modules:
        return key
    if "decoder" not in module:
        return f"{modules[module]}.{rest}"
    return f"{modules[module]}.{_decoder_name(rest)}"


def _decoder_name(key: str) -> str:
    """Our name of a parameter of a decoder, whose official levels count from 1, the finest."""
    if match := re.match(r"st_block_([1-4])([1-3])\.([02])\.(.*)", key):
        part = _scan_name(match[3], match[4])
        return f"relations.{int(match[1]) - 1}.{_ARRANGEMENTS[match[2]]}.{part}"
    if match := re.match(r"fuse_layer_([1-4])\.([01])\.(.*)", key):
        return f"relations.{int(match[1]) - 1}.fuse.{_CONV_NORM[match[2]]}.{match[3]}"
    if match := re.match(r"st_block_4_semantic\.([02])\.(.*)", key):
        return f"top.{_scan_name(match[1], match[2])}"
    if match := re.match(r"st_block_([1-3])_semantic\.1\.(.*)", key):
        return f"blocks.{int(match[1]) - 1}.{_block_name(match[2])}"
    if match := re.match(r"trans_layer_([1-3])\.([01])\.(.*)", key):
        return f"lateral.{int(match[1]) - 1}.{_CONV_NORM[match[2]]}.{match[3]}"
    if match := re.match(r"smooth_layer_([0-3])(?:_semantic)?\.(conv|bn)([12])\.(.*)", key):
        place = "final" if match[1] == "0" else f"smooth.{int(match[1]) - 1}"
        return f"{place}.conv{match[3]}.{'conv' if match[2] == 'conv' else 'norm'}.{match[4]}"
    return key


def _scan_name(part: str, rest: str) -> str:
    """Projection (0) and block (2) of an official sequence, which has a permutation between them."""
    return f"0.{rest}" if part == "0" else f"1.{_block_name(rest)}"


def _block_name(key: str) -> str:
    """Our name of a parameter of one block."""
    return vmamba_native_name(f"layers.0.blocks.0.{key}", False).removeprefix("stages.0.blocks.0.")
