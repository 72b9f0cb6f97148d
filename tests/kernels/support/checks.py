"""Inputs, error measure and tolerances shared by the kernel tests and benchmarks."""

import torch
import torch.nn.functional as F

from .reference import (
    neighborhood_reference,
    positions,
    selective_scan_reference,
    ss2d_reference,
    ssd_reference,
)

# Relative RMS error ||got - reference|| / ||reference|| against float64 on the same inputs.
# float32: rounding of sums of up to a few thousand terms.
# bfloat16: 1.5 times what rounding to bfloat16 costs where the kernels store it. One rounding has a relative RMS of
# 1.66e-3; directions are stored one by one and then summed, which is two: 1.5 * sqrt(2) * 1.66e-3. float16: the same
# with 2.1e-4; outputs are float32 there but the fast softplus is good to 6e-5 only. The interpreter cuts off instead
# of rounding when it converts to bfloat16, which doubles that error.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3.5e-3, torch.float16: 4.5e-4}
INTERPRETER_TOLERANCE = {**TOLERANCE, torch.bfloat16: 8e-3}


def tolerance(dtype: torch.dtype, device: str) -> float:
    """Largest relative RMS error allowed for inputs of this dtype."""
    return (TOLERANCE if device == "cuda" else INTERPRETER_TOLERANCE)[dtype]


def relative_error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """||got - reference|| / ||reference||; 0 if both are zero; NaN never passes a comparison."""
    difference = (got.double() - reference.double()).norm().item()
    scale = reference.double().norm().item()
    return difference / scale if scale else difference


def check_close(
    name: str, got: torch.Tensor, reference: torch.Tensor, limit: float, terms: torch.Tensor | None = None
) -> None:
    """Assert equal shapes and a relative RMS error within the limit.

    ``terms`` are what the reference is a sum of: where they cancel, what remains is their rounding, which is in
    proportion to their norm and not to that of the sum.
    """
    assert got.shape == reference.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(reference.shape)}"
    error = relative_error(got, reference)
    if terms is not None and terms.norm() > reference.norm():
        error *= (reference.norm() / terms.norm()).item()
    assert error <= limit, f"{name}: relative error {error:.2e} > {limit:.1e}"


def ss2d_inputs(
    B,
    L,
    D,
    R,
    N=1,
    K=4,
    dtype=torch.float32,
    device="cpu",
    has_c=True,
    bias=True,
    skip=True,
    delta_shift=-2.0,
    a_shift=0.0,
    own=False,
) -> dict[str, torch.Tensor | None]:
    """Random arguments of the SS2D scan; ``delta_shift`` moves delta's pre-activation, ``a_shift`` A_log.

    ``own``: each direction has an x of its own.
    """
    normal = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    return {
        "x": normal(*((B, L, K, D) if own else (B, L, D))).to(dtype),
        "proj": normal(B, L, K, R + (2 * N if has_c else N)).to(dtype),
        "dt_weight": normal(K, D, R) * R**-0.5,
        "dt_bias": normal(K, D) * 0.5 + delta_shift if bias else None,
        "A_log": normal(K, D, N) * 0.5 + a_shift,
        "D_skip": normal(K, D) if skip else None,
    }


def check_ss2d(args, order=None, index=None, height=1, width=1, merge=True, limit=None, grads=True, **kwargs) -> None:
    """Compare forward and every gradient of the SS2D kernels with the float64 loop."""
    from vmamba_kernels import ss2d_backward, ss2d_forward

    x = args["x"]
    device = x.device.type
    limit = limit or tolerance(x.dtype, device)
    how = {"index": index} if index is not None else {"order": order, "height": height, "width": width}
    truth = {n: t.detach().double().requires_grad_() if t is not None else None for n, t in args.items()}
    visits = index if index is not None else positions(order, args["A_log"].shape[0], height, width)
    expected = ss2d_reference(*truth.values(), visits)
    if merge:
        expected = expected.sum(1)
    y, states = ss2d_forward(*args.values(), **how, merge=merge, save_states=True, **kwargs)
    assert y.dtype == (torch.float32 if x.dtype == torch.float16 else x.dtype)
    check_close("y", y, expected.detach(), limit)
    if not grads:
        return
    dy = torch.randn_like(y)
    expected.backward(dy.double())
    got = ss2d_backward(dy, *args.values(), states, **how, **kwargs)
    for name, gradient in got._asdict().items():
        if args[name] is None:
            assert gradient is None
            continue
        assert gradient.dtype == args[name].dtype
        check_close(f"gradient to {name}", gradient, truth[name].grad, limit)


def selective_scan_inputs(
    B, D, L, N, G=1, dtype=torch.float32, device="cpu", softplus=True, optional=True
) -> dict[str, torch.Tensor | bool | None]:
    """Random arguments of the selective scan, in the order of its signature."""
    normal = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    return {
        "u": normal(B, D, L).to(dtype),
        "delta": (normal(B, D, L) * 0.5 - 1 if softplus else normal(B, D, L).abs() * 0.2).to(dtype),
        "A": -torch.exp(normal(D, N) * 0.5),
        "B": normal(B, G, N, L).to(dtype),
        "C": normal(B, G, N, L).to(dtype),
        "D": normal(D) if optional else None,
        "z": normal(B, D, L).to(dtype) if optional else None,
        "delta_bias": normal(D).abs() * 0.1 if optional else None,
        "delta_softplus": softplus,
        "initial_state": normal(B, D, N) if optional else None,
    }


def check_selective_scan(args, channels_last=False, limit=None) -> None:
    """Compare forward, last state and every gradient of the selective scan kernels with the float64 loop."""
    from vmamba_kernels import selective_scan_backward, selective_scan_forward

    u = args["u"]
    limit = limit or tolerance(u.dtype, u.device.type)
    truth = {n: t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t for n, t in args.items()}
    expected, last = selective_scan_reference(*truth.values())
    dout, dlast = torch.randn_like(u), torch.randn_like(last).float()
    ((expected * dout.double()).sum() + (last * dlast).sum()).backward()
    # the same values, channels-last in memory
    lay = (lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)) if channels_last else (lambda t: t)
    laid = {n: lay(t) if n in ("u", "delta", "z") and t is not None else t for n, t in args.items()}
    if channels_last:
        laid |= {n: args[n].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for n in ("B", "C")}
    out, h, saved = selective_scan_forward(*laid.values(), save=True)
    assert out.dtype == u.dtype
    assert out.transpose(1, 2).is_contiguous() or not channels_last
    check_close("out", out, expected.detach(), limit)
    check_close("last state", h, last.detach(), limit)
    got = selective_scan_backward(lay(dout), *laid.values(), saved, dlast_state=dlast)
    for name, gradient in got._asdict().items():
        if args[name] is None:
            assert gradient is None
            continue
        check_close(f"gradient to {name}", gradient, truth[name].grad, limit)


# of Mamba-2's scan, whose products also take their operands in bfloat16 (tf32 for float16, which is as short): five
# roundings instead of two, one after the other at the worst; and in the interpreter twice that for bfloat16, as above
SSD_TOLERANCE = {
    "cuda": {**TOLERANCE, torch.bfloat16: 5.5e-3, torch.float16: 7e-4},
    "cpu": {**INTERPRETER_TOLERANCE, torch.bfloat16: 1.1e-2, torch.float16: 7e-4}}


def ssd_inputs(
    B, L, H, P, G, N, dtype=torch.float32, device="cpu", skip="channel", bias=True, softplus=True, initial=True,
    causal=True,
) -> dict[str, torch.Tensor | bool | None]:  # fmt: skip
    """Random arguments of Mamba-2's scan, in the order of its signature."""
    normal = lambda *shape: torch.randn(*shape, device=device)  # noqa: E731
    return {
        "x": normal(B, L, H, P).to(dtype),
        "dt": (normal(B, L, H) * 0.5 - 1 if softplus else normal(B, L, H).abs() * 0.2).to(dtype),
        "A": -torch.exp(normal(H) * 0.5),
        "B": normal(B, L, G, N).to(dtype),
        "C": normal(B, L, G, N).to(dtype),
        "D": {"channel": normal(H, P), "head": normal(H), None: None}[skip],
        "dt_bias": normal(H).abs() * 0.1 if bias else None,
        "dt_softplus": softplus,
        "initial_state": normal(B, H, P, N) if initial else None,
        "causal": causal,
    }


def check_ssd(args, limit=None, grads=True) -> None:
    """Compare forward, last state and every gradient of the kernels of Mamba-2's scan with the float64 loop."""
    from vmamba_kernels import ssd_backward, ssd_forward

    x = args["x"]
    limit = limit or SSD_TOLERANCE[x.device.type][x.dtype]
    truth = {n: t.detach().double().requires_grad_() if isinstance(t, torch.Tensor) else t for n, t in args.items()}
    each = truth["A"].expand(x.shape[:3])  # the gradient to A is a sum over these, which may cancel
    each.retain_grad()
    expected, expected_last = ssd_reference(*{**truth, "A": each}.values())
    y, last = ssd_forward(*args.values())
    assert y.dtype == x.dtype
    check_close("y", y, expected.detach(), limit)
    check_close("last state", last, expected_last.detach(), limit)
    if not grads:
        return
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    ((expected * dy.double()).sum() + (expected_last * dlast).sum()).backward()
    got = ssd_backward(dy, *args.values(), last_state=last, dlast_state=dlast)
    for name, gradient in got._asdict().items():
        if args[name] is None:
            assert gradient is None
            continue
        assert gradient.dtype == args[name].dtype
        terms = {"dt_bias": truth["dt"].grad, "A": each.grad}.get(name)
        check_close(f"gradient to {name}", gradient, truth[name].grad, limit, terms)


def check_neighborhood(q, k, v, bias, window, dilated) -> None:
    """Compare the kernels of neighbourhood attention with a masked matrix of all positions, and every gradient."""
    from vmamba_kernels import (
        neighborhood_apply_backward,
        neighborhood_apply_forward,
        neighborhood_weights_backward,
        neighborhood_weights_forward,
    )

    limit = SSD_TOLERANCE[q.device.type][q.dtype]  # weights are rounded between the two halves, and so are sums
    truth = [t.detach().double().requires_grad_() for t in (q, k, v, bias)]
    expected = neighborhood_reference(*truth, window, dilated)
    weights = neighborhood_weights_forward(q, k, bias, window, dilated)
    y = neighborhood_apply_forward(weights, v, window, dilated)
    check_close("y", y, expected.detach(), limit)
    dy = torch.randn_like(y)
    expected.backward(dy.double())
    dweights, dv = neighborhood_apply_backward(dy, weights, v, window, dilated)
    dq, dk, _ = neighborhood_weights_backward(dweights, weights, q, k, window, dilated)
    for name, got, wanted in zip("qkv", (dq, dk, dv), truth, strict=False):
        check_close(f"gradient to {name}", got, wanted.grad, limit)


def merge_norm_reference(parts, weight, bias, gate, eps=1e-5) -> torch.Tensor:
    """LayerNorm of the sum over directions, times silu(gate), in float64."""
    out = F.layer_norm(parts.double().sum(1), parts.shape[-1:], weight, bias, eps)
    return out if gate is None else out * F.silu(gate)
