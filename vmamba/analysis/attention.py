"""The attention that is implicit in a selective scan, and how much state it holds at each place.

A scan without gates is linear in what is scanned: ``y = M u + D u`` for each channel, with M a lower triangular matrix
in the order of the walk, ``M[t, s] = sum_n C[t, n] exp(A[n] (delta[s + 1] + ... + delta[t])) delta[s] B[s, n]``. Row t
tells which steps the output at t reads, column s which steps read the input at s. Ali et al., "The Hidden Attention of
Mamba Models", arXiv:2403.01590, equation 10; Liu et al., "VMamba", arXiv:2401.10166, section 4.4.

What follows on the scan (gates, norms, weights of the directions, fusion of states) and the convolution before it are
no part of M.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .scans import Scan, Walk, to_places

__all__ = ["ScanMaps", "implicit_attention", "scan_maps", "state_size"]


def implicit_attention(walk: Walk, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """The matrix M of a walk, exactly, in float64.

    Decays are powers of differences of sums of step sizes, never quotients of decays, so nothing overflows.

    Args:
        walk: T steps of D channels.
        rows: Steps t [R] whose outputs are wanted; None for all.
        columns: Steps s [S] whose inputs are wanted; None for all.

    Returns:
        ``[B, D, R, S]``, zero where s > t. For all rows and columns that is memory for B * D * T * T numbers.
    """
    steps = torch.arange(walk.u.shape[1], device=walk.u.device)
    t, s = (steps if chosen is None else chosen for chosen in (rows, columns))
    passed = walk.delta.cumsum(1).transpose(1, 2)                       # [B, D, T]
    apart = (passed[:, :, t].unsqueeze(3) - passed[:, :, s].unsqueeze(2)).clamp(min=0)
    weights = torch.zeros_like(apart)
    for n in range(walk.A.shape[1]):
        pairs = walk.C[:, t, n].unsqueeze(2) * walk.B[:, s, n].unsqueeze(1)     # [B, R, S]
        weights += torch.exp(walk.A[:, n].view(-1, 1, 1) * apart) * pairs.unsqueeze(1)
    return weights * walk.delta.transpose(1, 2)[:, :, s].unsqueeze(2) * (s <= t.unsqueeze(1))


def state_size(walk: Walk) -> Tensor:
    """Root mean square of the state over channels and states after each step, ``[B, T]``."""
    state = torch.zeros(len(walk.u), *walk.A.shape, dtype=walk.A.dtype, device=walk.A.device)      # [B, D, N]
    sizes = []
    for t in range(walk.u.shape[1]):
        delta = walk.delta[:, t].unsqueeze(2)
        state = torch.exp(delta * walk.A) * state + delta * walk.u[:, t].unsqueeze(2) * walk.B[:, t].unsqueeze(1)
        sizes.append(state.square().mean((1, 2)).sqrt())
    return torch.stack(sizes, dim=1)


@dataclass(frozen=True)
class ScanMaps:
    """What one token of a scan has to do with the others, for each direction and for all together.

    Weights are means over channels of |M|. Maps are [B, h * w], and [B, h * w + 1] with a class token.

    Attributes:
        scan: The scan.
        place: The token's place.
        reads: [K, B, places]: how much the token's output depends on what is scanned at each place, directly.
        is_read: [K, B, places]: how much the output at each place depends on what is scanned at the token.
        states: [K, B, places]: size of the state after each place.
        reads_merged: [B, places]: of the sum of the directions, whose weights may cancel.
        is_read_merged: [B, places]: likewise.
    """

    scan: Scan
    place: int
    reads: Tensor
    is_read: Tensor
    states: Tensor
    reads_merged: Tensor
    is_read_merged: Tensor


@torch.no_grad()
def scan_maps(scan: Scan, place: int) -> ScanMaps:
    """Row and column of a token in the attention matrices of a scan, and the states, as maps.

    Args:
        scan: Of :func:`vmamba.analysis.record_scans`.
        place: Place of the token, row-major; h * w for the class token.

    Raises:
        ValueError: There is no such place.
    """
    count = scan.count
    if not 0 <= place < count:
        raise ValueError(f"place must lie in [0, {count - 1}], got {place}")
    reads, is_read, states = [], [], []
    for k in range(scan.directions):
        walk = scan.walk(k)
        at = (walk.places == place).nonzero().flatten()         # several where a walk visits copies of the map
        row = implicit_attention(walk, rows=at).sum(2).transpose(1, 2)      # [B, T, D]
        column = implicit_attention(walk, columns=at).sum(3).transpose(1, 2)
        reads.append(to_places(row, walk.places, count))
        is_read.append(to_places(column, walk.places, count))
        states.append(to_places(state_size(walk).unsqueeze(2), walk.places, count).squeeze(2))
    rows, columns = torch.stack(reads), torch.stack(is_read)                # [K, B, places, D]
    return ScanMaps(
        scan, place, rows.abs().mean(3), columns.abs().mean(3), torch.stack(states), rows.sum(0).abs().mean(2),
        columns.sum(0).abs().mean(2))
