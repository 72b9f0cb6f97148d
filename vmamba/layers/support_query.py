"""Scans of a query image together with a support image, for few-shot segmentation.

Xu et al., "Hybrid Mamba for Few-Shot Segmentation" (HMNet), NeurIPS 2024, arXiv:2409.19613. A scan over support and
then query forgets the support; here the support comes back before every window of the query (recap), and each token
of the query also reads the state that the support alone has left, without seeing other query tokens (intercept).
"""
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.ops import selective_scan, ss2d_scan
from vmamba.scans import recap_order, scan_order

from .ssm import reset_ssm_parameters

__all__ = ["SupportQueryScan"]

DIRECTIONS = 4


class SupportQueryScan(nn.Module):
    """Support recap and query intercept, with one set of parameters for both; what is between convolution and gate.

    Args:
        dim: Channels D of the activations.
        d_state: States N per channel.
        dt_rank: Rank R of the step sizes; None for ``ceil(D / 16)``.
        ratio: Windows of the query along each side, and how much coarser the support is that comes before each.
        as_released: Do as the published code: the intercept's skip weight is that of the first channel for all
            channels. False for a skip weight of each channel.
    """

    def __init__(
            self, dim: int, d_state: int = 16, dt_rank: int | None = None, ratio: int = 4, as_released: bool = True,
            device: Any = None, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.d_state, self.ratio, self.as_released = d_state, ratio, as_released
        self.dt_rank = dt_rank or math.ceil(dim / 16)
        self.x_proj = nn.Linear(dim, DIRECTIONS * (self.dt_rank + 2 * d_state), bias=False, **dd)
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, dim, self.dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(DIRECTIONS, dim, **dd))
        self.A_log = nn.Parameter(torch.empty(DIRECTIONS, dim, d_state, **dd))
        self.D = nn.Parameter(torch.empty(DIRECTIONS, dim, **dd))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Initialise the parameters of the state-space model; the projection resets itself."""
        reset_ssm_parameters(self.A_log, self.D, self.dt_weight, self.dt_bias)

    def _project(self, tokens: Tensor) -> Tensor:
        """Step-size factors, B and C of each direction: ``[B, L, D] -> [B, L, 4, R + 2N]``."""
        return self.x_proj(tokens).unflatten(2, (DIRECTIONS, -1))

    def _scan_arguments(self, tokens: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments u, delta, A, B, C of a selective scan of ``tokens`` [B, L, D] with the parameters k."""
        delta, B, C = self._project(tokens)[:, :, k].split([self.dt_rank, self.d_state, self.d_state], dim=2)
        delta = F.linear(delta, self.dt_weight[k])
        return (tokens.transpose(1, 2), delta.transpose(1, 2), -self.A_log[k].float().exp(), B.transpose(1, 2),
                C.transpose(1, 2))

    def recap(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """Scan the query's windows, the support before each; see :func:`vmamba.scans.recap_order`.

        Args:
            query: [B, H, W, D].
            support: [B, H / ratio, W / ratio, D].

        Returns:
            Of each direction the query [B, 4, H * W, D] and the support as first walked [B, 4, H * W / ratio^2, D],
            in natural order.
        """
        order = recap_order(query.shape[1:3], self.ratio)
        query, support = query.flatten(1, 2), support.flatten(1, 2)
        copies = self.ratio ** 2
        tokens = torch.cat([query, support.repeat(1, copies, 1)], dim=1)
        proj = torch.cat([self._project(query), self._project(support).repeat(1, copies, 1, 1)], dim=1)
        y = ss2d_scan(tokens, proj, self.dt_weight, self.dt_bias, self.A_log, self.D, order, merge=None)
        length = query.shape[1]
        return y[:, :, :length], y[:, :, length:length + support.shape[1]]

    @torch.no_grad()
    def support_state(self, support: Tensor) -> Tensor:
        """States after rows, columns, and both backwards of the support alone: ``[B, h, w, D] -> [B, 4, D, N]``.

        Without gradients, as in the published code.
        """
        walks = scan_order("cross", support.shape[1:3], device=support.device).index.long()
        tokens = support.flatten(1, 2)
        states = [
            selective_scan(
                *self._scan_arguments(tokens[:, walk], k), delta_bias=self.dt_bias[k], delta_softplus=True,
                return_last_state=True)[1]
            for k, walk in enumerate(walks)]
        return torch.stack(states, dim=1)

    def intercept(self, query: Tensor, state: Tensor) -> Tensor:
        """One step of each query token from the support's state, for each alone.

        Args:
            query: [B, h, w, D].
            state: [B, D, N].

        Returns:
            ``[B, h * w, D]``, by the parameters of direction 0.
        """
        tokens = query.flatten(1, 2)
        u, delta, A, B, C = self._scan_arguments(tokens.flatten(0, 1).unsqueeze(1), 0)  # sequences of one step
        skip = self.D[0, :1].expand(tokens.shape[2]) if self.as_released else self.D[0]
        y, _ = selective_scan(
            u, delta, A, B, C, skip, delta_bias=self.dt_bias[0], delta_softplus=True,
            initial_state=state.repeat_interleave(tokens.shape[1], dim=0), return_last_state=True)
        return y.squeeze(2).view(tokens.shape)

    def forward(self, query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        """Query and support ``[B, H, W, D]`` -> what the scans give for either, of the same shape.

        Raises:
            ValueError: H or W is not divisible by the ratio.
        """
        size = (query.shape[1], query.shape[2])
        coarse = (size[0] // self.ratio, size[1] // self.ratio)
        support, query_coarse = resize(support, coarse), resize(query, coarse)
        from_query, from_support = self.recap(query, support)
        read = self.intercept(query_coarse, self.support_state(support).mean(1)).view(query_coarse.shape)
        y = from_query.sum(1).view(query.shape) + resize(read, size)
        return y, resize(from_support.sum(1).view(support.shape), size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map bilinearly, corners kept in place: ``[B, H, W, D] -> [B, *size, D]``."""
    return F.interpolate(
        x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=True).permute(0, 2, 3, 1)
