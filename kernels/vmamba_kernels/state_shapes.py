"""Shapes of the states that the forwards save for the backwards, for callers that run no kernel; sizes that fit."""

__all__ = [
    "SCAN_TILE", "SSD_LIMIT", "TILE", "selective_scan_states_shape", "ss2d_states_shape", "ssd_fits", "tiles_per_state"
]  # fmt: skip

TILE = 16  # visits per tile of the kernels for one state per channel
SCAN_TILE = 8  # of the general ones
SSD_LIMIT = 16384  # of a head's state in Mamba-2's scan, which a program holds in registers


def tiles_per_state(N: int) -> int:
    """Tiles between saved states: with more states per channel they are saved less often, and recomputed."""
    return max(1, min(N, 64) // 4)


def selective_scan_states_shape(batch: int, groups: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps of ``channels`` channels per group."""
    return batch, groups, -(-visits // (SCAN_TILE * tiles_per_state(N))), N, channels


def ss2d_states_shape(batch: int, directions: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps per direction."""
    if N == 1:
        return batch, directions, -(-visits // TILE), channels
    return selective_scan_states_shape(batch, directions, visits, channels, N)


def ssd_fits(channels: int, states: int) -> bool:
    """Whether the kernels of Mamba-2's scan take heads of so many channels and states, both padded to powers of two."""
    padded = (max(16, 1 << (n - 1).bit_length()) for n in (channels, states))
    return next(padded) * next(padded) <= SSD_LIMIT
