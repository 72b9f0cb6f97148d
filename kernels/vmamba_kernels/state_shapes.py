"""Shapes of the states that the forwards save for the backwards, for callers that run no kernel."""

__all__ = ["TILE", "selective_scan_states_shape", "ss2d_states_shape", "tiles_per_state"]

TILE = 16  # visits per tile


def tiles_per_state(N: int) -> int:
    """Tiles between saved states: with more states per channel they are saved less often, and recomputed."""
    return max(1, N // 2)


def selective_scan_states_shape(batch: int, groups: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps of ``channels`` channels per group."""
    tiles = (visits + TILE - 1) // TILE
    every = tiles_per_state(N)
    return batch, groups, (tiles + every - 1) // every, N, channels


def ss2d_states_shape(batch: int, directions: int, visits: int, channels: int, N: int) -> tuple[int, ...]:
    """Shape for ``visits`` steps per direction."""
    if N == 1:
        return batch, directions, (visits + TILE - 1) // TILE, channels
    return selective_scan_states_shape(batch, directions, visits, channels, N)
