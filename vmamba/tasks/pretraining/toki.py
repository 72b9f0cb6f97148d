"""TOKI, the token interpolation of MambaMIM: mask tokens made from the visible tokens on either side of them.

Tang et al., "MambaMIM: Pre-training Mamba with State Space Token-interpolation", arXiv:2408.08070. The published code
(Apache-2.0) mixes channels with positions when it shapes its tokens into a map; here each position keeps its own.
"""
import torch
from torch import Tensor, nn

__all__ = ["TokenInterpolation", "interpolate_tokens"]


def interpolate_tokens(features: Tensor, visible: Tensor, transition: Tensor) -> Tensor:
    """Synthesises a token for each position from the visible ones before and after it, through a linear recursion.

    Positions are taken in raster order. Anchors are the visible ones, the first and the last. Between two anchors i
    and j, n = j - i positions apart, with f the features and A the transition:

        x_r = (1 - α_r) f(i) + α_r f(j),    α_r = r / (n - 1), 0 where n = 1,
        m(i + r) = Σ_{q ≤ r} A^(n - 1 - q) x_q,    r = 0 ... n - 1,

    and A f(L - 1) at the last position. The exponent counts from the end of the gap, as in the published code: sums
    grow along the gap, and a plain recursion's A^(r - q) would be another one.

    Args:
        features: [B, *grid, C], a grid of any number of axes. Those of masked positions count at the first and the
            last position only: give zeros there.
        visible: [B, *grid] or [1, *grid] bool.
        transition: A [C, C].

    Returns:
        m [B, *grid, C], of visible positions too, where it holds what the recursion gives and not the feature.

    Raises:
        ValueError: shapes that do not fit each other, or a grid without positions.
    """
    _check(features, visible, transition)
    tokens = features.flatten(1, -2)
    length = tokens.shape[1]
    positions = torch.arange(length, device=tokens.device)
    anchor = visible.flatten(1) | (positions == 0) | (positions == length - 1)
    left = torch.where(anchor, positions, 0).cummax(1).values
    # the next anchor after each position; beyond the last one another, so that its single token is A f(last)
    following = torch.where(anchor, positions, length + 1).flip(1).cummin(1).values.flip(1)
    right = torch.cat([following[:, 1:], following.new_full((len(following), 1), length + 1)], dim=1)
    gap, place = right - left, positions - left
    weight = place.to(tokens.dtype) / (gap - 1).clamp(min=1)
    weight = torch.where(positions == length - 1, 0, weight).unsqueeze(-1)

    def at(index: Tensor) -> Tensor:
        index = index.clamp(max=length - 1).unsqueeze(-1)
        return tokens.gather(1, index.expand(len(tokens), -1, tokens.shape[-1]))

    x = (1 - weight) * at(left) + weight * at(right)
    x = _apply_powers(x, transition, gap - 1 - place)
    return _sum_along_gaps(x, place).view(features.shape)


def _apply_powers(x: Tensor, transition: Tensor, exponents: Tensor) -> Tensor:
    """A^e x of each token: x [B, L, C], A [C, C], e [B or 1, L] from 0. By squaring: as many products as e has bits."""
    power = transition
    for bit in range(int(exponents.max()).bit_length()):
        power = power if bit == 0 else power @ power
        x = torch.where((exponents >> bit & 1).bool().unsqueeze(-1), x @ power.mT, x)
    return x


def _sum_along_gaps(x: Tensor, place: Tensor) -> Tensor:
    """Sum of each token [B, L, C] and those before it in its gap, where `place` [B or 1, L] counts from 0.

    By doubling, and not as differences of one long sum: what one gap adds up to does not round another's.
    """
    reach = 1
    while reach <= int(place.max()):
        before = torch.cat([torch.zeros_like(x[:, :reach]), x[:, :-reach]], dim=1)
        x = x + torch.where((place >= reach).unsqueeze(-1), before, 0)
        reach *= 2
    return x


def _check(features: Tensor, visible: Tensor, transition: Tensor) -> None:
    grid, channels = features.shape[1:-1], features.shape[-1]
    if features.ndim < 3 or 0 in grid:
        raise ValueError(f"features are {list(features.shape)}, but need to be [B, *grid, C] with positions")
    if visible.dtype != torch.bool or visible.shape[1:] != grid or len(visible) not in (1, len(features)):
        raise ValueError(f"visible is {list(visible.shape)} {visible.dtype}, but needs to be "
                         f"{[len(features), *grid]} or {[1, *grid]} bool, like the features")
    if transition.shape != (channels, channels):
        raise ValueError(f"transition is {list(transition.shape)}, but needs to be {[channels, channels]}")


class TokenInterpolation(nn.Module):
    """Puts interpolated tokens where a map has none; see :func:`interpolate_tokens`.

    The transition A begins at zero, as published: then the last token of a gap is the anchor after it, and the others
    are zero.

    Args:
        dim: Channels C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transition = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Map and what of it is visible -> the same map, its masked positions synthesised.

        Args:
            features: [B, *grid, C]; what it has at masked positions is not looked at.
            visible: [B, *grid] or [1, *grid] bool.
        """
        # float32 under autocast too: powers of a matrix in half precision would drift
        with torch.autocast(features.device.type, enabled=False):
            kept = torch.where(visible.unsqueeze(-1), features.float(), 0)
            tokens = interpolate_tokens(kept, visible, self.transition.float())
        return torch.where(visible.unsqueeze(-1), features, tokens.to(features.dtype))
