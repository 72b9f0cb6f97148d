"""Launch configurations: a shipped table of measured choices, and a rule for everything that is not in it.

A configuration depends on the channel count, never on the image size: a new resolution neither recompiles nor retunes.
"""

from typing import NamedTuple


class Config(NamedTuple):
    """How a scan kernel is laid out."""

    lanes: int  # channels per lane (V): 1, 2 or 4
    registers: int | None = None  # cap per thread; None leaves it to the compiler


# (kernel, D) -> Config, measured on H200 (sm_90); sm_80 has the same register file and uses the same rows
_TABLE: dict[tuple[str, int], Config] = {}


def widest_lanes(D: int, most: int) -> int:
    """Channels per lane: the widest of 1, 2, 4 up to ``most`` that leaves no more lanes idle than one channel per lane does."""
    best = 1
    for v in (2, 4):
        if v <= most and -(-D // (32 * v)) * v <= -(-D // 32):
            best = v
    return best


def config(kernel: str, D: int) -> Config:
    """Configuration of a kernel ("ss2d_fwd", "ss2d_bwd") for D channels."""
    found = _TABLE.get((kernel, D))
    if found:
        return found
    return Config(widest_lanes(D, 2 if kernel == "ss2d_fwd" else 1))
