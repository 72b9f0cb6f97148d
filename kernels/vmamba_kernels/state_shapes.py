"""Shapes of the states that the forwards save for the backwards, for callers that run no kernel."""

__all__ = ["SCAN_TILE", "TILE", "selective_scan_states_shape", "ss2d_states_shape", "tiles_per_state"]

TILE = 16  # visits per tile of the kernels for one state per channel
SCAN_TILE = 8  # of the general ones


def tiles_per_state(N: int) -> int:
    """Tiles between saved states: with more states per channel they are saved less often, and recomputed."""
    return min(N, 32)


def selective_scan_states_shape(batch: int, groups: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps of ``channels`` channels per group."""
    return batch, groups, -(-visits // (SCAN_TILE * tiles_per_state(N))), N, channels


def ss2d_states_shape(batch: int, directions: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps per direction."""
    if N == 1:
        return batch, directions, -(-visits // TILE), channels
    return selective_scan_states_shape(batch, directions, visits, channels, N)
