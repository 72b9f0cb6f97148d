"""Rotary position encoding over the rows and columns of a map, and arithmetic in float32 where it matters.

Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864, equation 15, one half of
the channels for the row and the other for the column.
"""
import torch
from torch import Tensor

__all__ = ["axial_angles", "rotate", "widen"]


# Wrapped: tracing takes these functions whole, because a traced graph can neither make ranges nor ask for types. It
# finds them where they are called as ``rotary.axial_angles``.
@torch.fx.wrap
def axial_angles(like: Tensor, height: int, width: int, channels: int, inclusive: bool) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which the pairs of channels at each position turn, ``[H, W, channels / 2]``, float32.

    Pair t of the first half of the pairs turns by ``row * 10000 ** -f(t)``, of the second half by the column.

    Args:
        like: A tensor on the wanted device.
        height: Rows H.
        width: Columns W.
        channels: Channels that turn, a multiple of 4.
        inclusive: Let the exponent f run from 0 to 1 and not only up to 1, of which it leaves out the last.
    """
    quarter = channels // 4
    steps = max(quarter - 1, 1) if inclusive else quarter
    frequency = torch.pow(10000.0, -torch.arange(quarter, device=like.device, dtype=torch.float32) / steps)
    rows = torch.arange(height, device=like.device, dtype=torch.float32).unsqueeze(1) * frequency
    columns = torch.arange(width, device=like.device, dtype=torch.float32).unsqueeze(1) * frequency
    angles = torch.cat([
        rows.unsqueeze(1).expand(height, width, quarter), columns.unsqueeze(0).expand(height, width, quarter)], dim=-1)
    return angles.cos(), angles.sin()


@torch.fx.wrap
def widen(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels as a complex number, ``[..., C]`` by ``[..., C / 2]``, in float32 or wider."""
    a, b = widen(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
