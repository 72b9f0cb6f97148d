"""The scans, written to be read: plain loops in float64, gradients by autograd. The kernels are tested against them."""

import torch
import torch.nn.functional as F


def positions(order: str, K: int, height: int, width: int) -> torch.Tensor:
    """[K, L] natural token position of each visit."""
    grid = torch.arange(height * width).view(height, width)
    row, column = grid.flatten(), grid.t().flatten()
    if order == "uni":
        return row.expand(K, -1)
    if order == "bidi":
        return torch.stack([row if k < K // 2 else row.flip(0) for k in range(K)])
    if order == "cross":
        return torch.stack([row, column, row.flip(0), column.flip(0)])
    raise ValueError(order)


def ss2d_reference(x, proj, dt_weight, dt_bias, A_log, D_skip, index) -> torch.Tensor:
    """y [B, K, L, D] at natural positions, in float64, for an index table [K, visits] (-1 = zero token)."""
    x, proj, dt_weight, A_log = (t.double() for t in (x, proj, dt_weight, A_log))
    B, L, D = x.shape[0], x.shape[1], x.shape[-1]
    K, _, R = dt_weight.shape
    x = x if x.dim() == 4 else x[:, :, None].expand(-1, -1, K, -1)
    N = A_log.shape[2]
    directions = []
    for k in range(K):
        A = -torch.exp(A_log[k])  # [D, N]
        h = x.new_zeros(B, D, N)
        out = [x.new_zeros(B, D) for _ in range(L)]
        for p in index[k].tolist():
            xt = x[:, p, k] if p >= 0 else torch.zeros_like(x[:, 0, 0])  # [B, D]
            row = proj[:, p, k] if p >= 0 else torch.zeros_like(proj[:, 0, k])  # [B, R + 2N]
            z = row[:, :R] @ dt_weight[k].t()
            if dt_bias is not None:
                z = z + dt_bias[k].double()
            delta = F.softplus(z, threshold=40)  # [B, D]
            Bt, Ct = row[:, R : R + N], row[:, R + N :]
            h = torch.exp(delta[..., None] * A) * h + (delta * xt)[..., None] * Bt[:, None]
            y = (h * Ct[:, None]).sum(-1) if Ct.shape[1] else h[..., 0]
            if D_skip is not None:
                y = y + D_skip[k].double() * xt
            if p >= 0:
                out[p] = y
        directions.append(torch.stack(out, 1))
    return torch.stack(directions, 1)


def selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state):
    """Output [B, D, L] and last state [B, D, N] in float64; arguments as in mamba-ssm, B and C [B, G, N, L]."""
    u, delta, A, B, C = (t.double() for t in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.double()[:, None]
    if delta_softplus:
        delta = F.softplus(delta, threshold=40)
    repeat = u.shape[1] // B.shape[1]
    h = u.new_zeros(*u.shape[:2], A.shape[1]) if initial_state is None else initial_state.double()
    ys = []
    for t in range(u.shape[2]):
        Bt = B[..., t].repeat_interleave(repeat, 1)  # [B, D, N]
        Ct = C[..., t].repeat_interleave(repeat, 1)
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * Bt
        ys.append((h * Ct).sum(-1))
    y = torch.stack(ys, -1)
    if D is not None:
        y = y + D.double()[:, None] * u
    if z is not None:
        y = y * F.silu(z.double())
    return y, h


def ssd_reference(x, dt, A, B, C, D, dt_bias, dt_softplus, initial_state, causal):
    """Output [B, L, H, P] and last state [B, H, P, N] of Mamba-2's scan, in float64; B and C [B, L, G, N]."""
    x, dt, A, B, C = (t.double() for t in (x, dt, A, B, C))
    A = A.expand(x.shape[:3])  # [H], or of each token
    if dt_bias is not None:
        dt = dt + dt_bias.double()
    if dt_softplus:
        dt = F.softplus(dt, threshold=40)
    B, C = (t.repeat_interleave(x.shape[2] // B.shape[2], 2) for t in (B, C))
    drive = torch.einsum("blh,blhp,blhn->blhpn", dt, x, B)
    h = torch.zeros_like(drive[:, 0]) if initial_state is None else initial_state.double()
    states = []
    for t in range(x.shape[1]):
        h = (torch.exp(dt[:, t] * A[:, t])[..., None, None] * h if causal else h) + drive[:, t] * (
            1 if causal else -A[:, t, :, None, None])
        states.append(h)
    states = torch.stack(states, 1) if causal else h[:, None].expand_as(drive)
    y = torch.einsum("blhpn,blhn->blhp", states, C)
    if D is not None:
        y = y + x * (D.double() if D.dim() == 2 else D.double()[:, None])
    return y, h


def neighborhood_reference(q, k, v, bias, window, dilated):
    """Sums over windows [B, H, W, n, D] in float64, as attention among all positions with a mask."""
    q, k, v, bias = (t.double() for t in (q, k, v, bias))
    axes = []
    for extent in q.shape[1:3]:
        dilation = max(1, min(extent // window, window)) if dilated else 1
        distance = torch.full((extent, extent), -1)
        for i in range(extent):
            own = list(range(i % dilation, extent, dilation))
            rank = own.index(i)
            start = max(0, min(rank - window // 2, len(own) - window))
            for j in range(start, min(start + window, len(own))):
                distance[i, own[j]] = j - rank + window - 1
        axes.append(distance.to(q.device))
    rows, columns = axes[0][:, None, :, None], axes[1][None, :, None, :]  # [H, 1, H, 1], [1, W, 1, W]
    mask = bias[:, rows.clamp(min=0), columns.clamp(min=0)].masked_fill((rows < 0) | (columns < 0), float("-inf"))
    scores = torch.einsum("bhwnd,bijnd->bnhwij", q, k) + mask
    return torch.einsum("bnhwij,bijnd->bhwnd", scores.flatten(4).softmax(-1).view(scores.shape), v)
