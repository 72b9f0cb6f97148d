"""Launch configurations: a shipped table of measured choices, and a rule for everything that is not in it.

A configuration depends on the channel count, never on the image size: a new resolution neither recompiles nor retunes.
"""

import math
from typing import NamedTuple


class Config(NamedTuple):
    """How a scan kernel is laid out."""

    blocks: int  # blocks of 32 channels per program
    stages: int  # depth of the load pipeline
    registers: int | None = None  # cap per thread; None leaves it to the compiler


# (kernel, D) -> Config, measured on H200 (sm_90); sm_80 has the same register file and uses the same rows
_TABLE: dict[tuple[str, int], Config] = {
    ("ss2d_fwd", 384): Config(2, 3),
    ("ss2d_bwd", 768): Config(1, 2),
}
SCAN_REGISTERS = 168  # cap per thread of the general kernels: three warps per scheduler
_LEAST_VISITS = 128  # in a segment, at least
_PROGRAMS = 132 * 24  # enough one-warp programs to fill a large GPU; with more, a program takes several images


def config(kernel: str, D: int) -> Config:
    """Configuration of a kernel ("ss2d_fwd", "ss2d_bwd") for D channels."""
    found = _TABLE.get((kernel, D))
    if found:
        return found
    return Config(1, 3)


def fits_own_memory(N: int) -> bool:
    """Whether a program's own memory holds what N states need, for as many programs as registers allow."""
    return N <= 16


def states_at_a_time(N: int, walk: str) -> int:
    """How many of a channel's N states a general kernel holds in registers: all, or few that take turns.

    Args:
        N: States per channel.
        walk: "forward", "first pass" of the backward, which has few gradients to hold, or "backward".
    """
    if walk == "backward":
        return math.gcd(N, 2)
    if fits_own_memory(N):
        return N
    return math.gcd(N, 16 if walk == "first pass" else 4)


def images_per_program(batch: int, programs_per_image: int) -> int:
    """How many images one program takes: a divisor of the batch that leaves enough programs to fill the device.

    More images per program amortise the loading of weights and shrink the partial sums of the weight gradients.
    """
    most = max(1, batch * programs_per_image // _PROGRAMS)
    return max(n for n in range(1, most + 1) if batch % n == 0)


def segment_length(programs: int, tiles: int, multiple: int, tile: int) -> int:
    """How many tiles a segment has when the sequences of so many programs are cut to fill the device.

    Cutting costs a second pass over the input, so it is done only where most of the device would be idle.

    Args:
        programs: without cutting.
        tiles: length of a sequence in tiles.
        multiple: segments are multiples of so many tiles.
        tile: visits per tile.

    Returns:
        The length of a segment; ``tiles`` or more where nothing is to be cut.
    """
    count = min(_PROGRAMS // 2 // max(1, programs), tiles * tile // _LEAST_VISITS)
    if count < 4:
        return tiles
    return -(-tiles // (count * multiple)) * multiple
