"""Which feature maps of a model are looked at: timm's ``feature_info`` and ``forward_intermediates``."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmamba.errors import UserError

__all__ = ["default_stages", "stage_names"]

MOST = 4


def default_stages(count: int) -> list[int]:
    """All stages of ``count``, or of many blocks four, evenly spaced and the last among them."""
    if count <= MOST:
        return list(range(count))
    return [count * (i + 1) // MOST - 1 for i in range(MOST)]


def stage_names(model: Any, stages: Sequence[int] | None = None) -> dict[int, str]:
    """Index and module name of the stages asked for.

    Args:
        model: A timm model.
        stages: Their indices, negative ones from the end; None for those of :func:`default_stages`.

    Raises:
        UserError: The model gives no feature maps, or has no such stage.
    """
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise UserError(f"{type(model).__name__} gives no feature maps")
    names = [entry["module"] for entry in info]
    for stage in stages or ():
        if not -len(names) <= stage < len(names):
            raise UserError(f"there is no stage {stage}: the model has {len(names)}, numbered from 0")
    chosen = default_stages(len(names)) if stages is None else [stage % len(names) for stage in stages]
    return {index: names[index] for index in sorted(set(chosen))}
