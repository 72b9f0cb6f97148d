"""The Mamba mixer of clips: paths frame by frame and place by place over tokens with a class token in front."""
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmamba.scans import video_routes

from .path_mixer import PathMixer

__all__ = ["VideoMixer"]


class VideoMixer(PathMixer):
    """Mamba paths over the tokens of a clip, gated and added up.

    Li et al., "VideoMamba", arXiv:2403.06977, section 3.2. Forwards a path begins with the class token, backwards it
    ends with it. The gate is a function of the token alone, so it multiplies the sum instead of each path.

    Args:
        dim: Channels C of input and output.
        scan: Name of an order of clips, one of :data:`vmamba.scans.VIDEO_SCANS` with both ways.
        sizes: Further arguments of :class:`PathMixer`.

    Raises:
        ValueError: ``scan`` is unknown, or has walks forwards only.
    """

    def __init__(
            self, dim: int, scan: str = "spatial_first_bidi", device: Any = None, dtype: torch.dtype | None = None,
            **sizes: Any,
    ) -> None:
        routes = video_routes(scan)
        if not routes[-1].reverse:
            raise ValueError(f"the order {scan!r} walks forwards only, but the mixer needs one that walks both ways")
        super().__init__(dim, directions=len(routes), **sizes, device=device, dtype=dtype)
        self.temporal = [route.column for route in routes]
        self.reverse = [route.reverse for route in routes]
        self.mixed = any(self.temporal)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``[B, 1 + T * P, C]`` both ways: class token, then P tokens of each of T = ``frames`` frames."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        by_place = swap_axes(x, frames) if self.mixed else x
        paths: list[Tensor] = []
        for k, (temporal, reverse) in enumerate(zip(self.temporal, self.reverse)):  # noqa: B905  (TorchScript)
            paths.append(self.convolve(by_place if temporal else x, k, reverse))
        # each path in the natural order of its own sequence, so that half of them run forwards and half backwards
        u = F.silu(torch.stack(paths, 2)).to(x.dtype)
        y = torch.ops.vmamba.ss2d_scan(
            u, self.project(u), self.dt_weight, self.dt_bias, self.A_log, self.D, "bidi", 1, u.shape[1], None,
            not self.mixed)[0]
        if self.mixed:
            total = torch.zeros_like(y[:, 0])
            places = (x.shape[1] - 1) // frames
            for k, temporal in enumerate(self.temporal):
                total = total + (swap_axes(y[:, k], places) if temporal else y[:, k])
            y = total
        return self.out_proj((y * F.silu(z)).to(z.dtype))


def swap_axes(x: Tensor, rows: int) -> Tensor:
    """Tokens of a grid of ``rows`` rows column by column, the class token in front: ``[B, 1 + L, C]`` both ways."""
    tokens = x[:, 1:].unflatten(1, (rows, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([x[:, :1], tokens], dim=1)
