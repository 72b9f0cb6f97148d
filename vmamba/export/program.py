"""A classifier as a traced program whose batch, height and width are free."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..errors import UserError

__all__ = ["require_size", "trace"]


def trace(model: nn.Module, input_size: Sequence[int], fixed_size: bool) -> ExportedProgram:
    """Trace a model for inference, with a free batch.

    Args:
        model: Images [B, C, H, W] -> logits [B, classes], on the device that it is to run on.
        input_size: Of the images that it is for, (C, H, W).
        fixed_size: Take images of this size only; else height and width are free too.

    Raises:
        UserError: the model cannot be traced with free height and width.
    """
    channels, height, width = input_size
    free = {0: Dim.DYNAMIC(min=1)}
    if not fixed_size:
        free |= {2: Dim.DYNAMIC(min=1), 3: Dim.DYNAMIC(min=1)}
        # large enough for more than one token, and more than one window where the model's images have one, in every
        # stage, and different from each other, so that nothing is taken to be equal
        height, width = max(2 * height, 128), max(2 * width, 128) + 32
    parameter = next(model.parameters())
    example = torch.zeros(2, channels, height, width, dtype=parameter.dtype, device=parameter.device)
    try:
        with torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=(free,), strict=False)
    except (torch._dynamo.exc.UserError, RuntimeError, ValueError) as error:  # ValueError: of a random scan order
        reason = " ".join(str(error).split())[:200]
        what = "a free batch" if fixed_size else "images of any size, try --fixed-size"
        raise UserError(f"the model cannot be traced for {what}: {reason}") from error


def require_size(program: ExportedProgram, input_size: Sequence[int]) -> None:
    """Refuse a program that does not take the images that it is for.

    What holds for large images only, such as more than one token in the last stage, is a condition of the program.

    Raises:
        UserError: height or width are too small for it.
    """
    (images,) = (node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    for size, symbol in zip(input_size[1:], images.meta["val"].shape[2:], strict=True):
        if isinstance(symbol, torch.SymInt):
            least = program.range_constraints[symbol.node.expr].lower
            if size < least:
                raise UserError(f"the program takes images of at least {least} pixels a side, not {size}: add "
                                "--fixed-size")
