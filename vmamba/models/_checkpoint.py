"""What the families' ``checkpoint_filter_fn`` share: opening envelopes, and refusing a checkpoint that does not fit."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from vmamba._timm import load_pretrained

from ._safe_load import load_safely

__all__ = [
    "AllOrNothing", "fit_official", "linear_weights", "load_released", "open_envelope", "read_pickles_safely",
    "require_fit"]

# Published files keep the weights behind their published score under `model`; training runs add the others.
ENVELOPES = ("model", "state_dict", "model_ema", "state_dict_ema")
WRAPPERS = ("module.", "_orig_mod.", "backbone.")


def open_envelope(checkpoint: Mapping[str, Any], beside: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint, without wrappers' prefixes (DDP, compile, detection backbones).

    Args:
        checkpoint: A state dict, or a dictionary with one under ``model``, ``state_dict``, ``model_ema`` or
            ``state_dict_ema`` (the first that is there) next to optimizer state and the like.
        beside: Prefixes of parameters that belong to the model and stand beside a wrapped backbone.
    """
    for key in ENVELOPES:
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
            break
    state = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    for prefix in WRAPPERS:
        while any(k.startswith(prefix) for k in state):
            # a detection checkpoint also holds its neck and heads, which no backbone can take
            own = [k for k in state if k.startswith((prefix, *beside))]
            state = {k.removeprefix(prefix): state[k] for k in own}
    return state


def read_pickles_safely(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``timm.create_model``, with an overlay's pickled file read by the model's ``load_pretrained``.

    timm itself refuses a released file for the foreign objects that are pickled beside its weights.
    """
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    file = str(overlay.get("file") or "")
    if not file or file.endswith(".safetensors"):
        return kwargs
    return {**kwargs, "pretrained_cfg_overlay": {"custom_load": True, **overlay}}


def load_released(model: nn.Module, path: str, filter_fn: Callable) -> None:
    """Load a released file, whose pickled configuration is replaced by inert stand-ins; a model's ``load_pretrained``.

    Args:
        model: A model of ``timm.create_model``.
        path: The file.
        filter_fn: The family's ``checkpoint_filter_fn``.

    Raises:
        ValueError: The file cannot be read or names objects that are not known to be harmless.
        RuntimeError: The weights do not fit; nothing is loaded then.
    """
    content, _ = load_safely(Path(path))
    cfg = dict(cast("dict[str, Any]", model.pretrained_cfg))
    cfg |= {"state_dict": content, "custom_load": False}
    load_pretrained(
        model, cfg, num_classes=cast(int, model.num_classes), in_chans=cast(int, model.in_chans), filter_fn=filter_fn)


def fit_official(
        state_dict: Mapping[str, Any], model: nn.Module, native_name: Callable[[str], str],
) -> dict[str, Tensor]:
    """Bring a checkpoint of a hierarchical family to this implementation's names and shapes.

    Takes training envelopes, 1x1-convolution weights, and checkpoints of detection or segmentation backbones, whose
    norms per output are left out. Our own names, which begin with ``stages.``, pass unchanged.

    Args:
        state_dict: The checkpoint.
        model: The model.
        native_name: Our name of an official parameter.

    Raises:
        RuntimeError: The checkpoint does not fit; names every missing, unexpected and mis-shaped key.
    """
    state = open_envelope(state_dict)
    if not any(k.startswith("stages.") for k in state):
        state = {native_name(k): v for k, v in state.items()}
    backbone = {k: v for k, v in state.items() if not re.match(r"^outnorm\d\.", k)}
    is_backbone = len(backbone) < len(state)
    state = linear_weights(backbone, model)
    require_fit(state, model, optional=("norm.",) if is_backbone else ())
    return state


def linear_weights(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Reshape weights to the model's own shape where only that differs: 1x1 convolutions, flattened stacks."""
    own = model.state_dict()
    return {
        k: v.reshape(own[k].shape) if k in own and v.shape != own[k].shape and _same_matrix(v, own[k]) else v
        for k, v in state.items()
    }


def _same_matrix(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two shapes hold the same numbers in the same order, and not another model that happens to fit."""
    def squeezed(t: Tensor) -> list[int]:
        return [s for s in t.shape if s != 1]

    if theirs.numel() != ours.numel():
        return False
    a, b = squeezed(theirs), squeezed(ours)
    return a == b or _merges_into(a, b) or _merges_into(b, a)


def _merges_into(fine: list[int], coarse: list[int]) -> bool:
    """Whether merging neighbouring dimensions of ``fine`` gives ``coarse``, e.g. [4, 96, 16] -> [384, 16]."""
    i = 0
    for size in coarse:
        product = 1
        while product < size and i < len(fine):
            product *= fine[i]
            i += 1
        if product != size:
            return False
    return i == len(fine)


def require_fit(state: Mapping[str, Tensor], model: nn.Module, optional: tuple[str, ...] = ()) -> None:
    """Raise unless ``state`` fits ``model``, for a ``checkpoint_filter_fn``.

    The classifier may have another number of classes and the first convolution another number of input channels: timm
    adapts these afterwards.

    Args:
        state: Weights under the model's names.
        model: The model.
        optional: Prefixes that may be missing, e.g. of what a detection backbone has not.

    Raises:
        RuntimeError: Names every missing, unexpected and mis-shaped key.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    classifier = f"{cfg.get('classifier')}."
    first_conv = f"{cfg.get('first_conv')}."
    _require_keys(state, model, (classifier, *optional), (classifier,), (classifier, first_conv))


class AllOrNothing(nn.Module):
    """A model whose strict ``load_state_dict`` loads everything or, where anything does not fit, nothing at all."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``nn.Module``'s, which would copy what fits before it raises.

        Raises:
            RuntimeError: With ``strict``, names every missing, unexpected and mis-shaped key.
        """
        if strict:
            _require_keys(state_dict, self)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _require_keys(
        state: Mapping[str, Tensor], model: nn.Module, may_miss: tuple[str, ...] = (),
        may_exceed: tuple[str, ...] = (), may_differ: tuple[str, ...] = (),
) -> None:
    """Raise unless keys and shapes agree but for the given prefixes."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(may_miss)]
    unexpected = [k for k in state if k not in own and not k.startswith(may_exceed)]
    shapes = [
        f"{k} {list(state[k].shape)} instead of {list(own[k].shape)}"
        for k in own if k in state and state[k].shape != own[k].shape and not k.startswith(may_differ)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(faults.values()):
        parts = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in faults.items() if keys]
        raise RuntimeError(
            f"the checkpoint does not fit {type(model).__name__} "
            f"({cfg.get('architecture', 'no architecture')}) and nothing was loaded; {'; '.join(parts)}")
