import pytest
import torch
from vmamba_kernels import configs, selective_scan_backward, selective_scan_forward

from tests.kernels.support.checks import check_selective_scan, selective_scan_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("B", "D", "L", "N", "G", "softplus", "optional"),
    [
        (2, 8, 20, 3, 2, True, True),
        (1, 33, 17, 1, 1, True, False),
        (1, 6, 1, 2, 3, False, True),
        (1, 4, 49, 5, 1, False, False),
        (1, 3, 37, 16, 1, True, True),  # two groups of tiles; as many states as own memory holds
        (1, 3, 37, 18, 1, True, True),  # more
    ],
)
def test_against_loop(B, D, L, N, G, softplus, optional, channels_last, device):
    args = selective_scan_inputs(B, D, L, N, G, device=device, softplus=softplus, optional=optional)
    check_selective_scan(args, channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, device):
    check_selective_scan(selective_scan_inputs(1, 8, 40, 4, dtype=dtype, device=device))


def test_state_carries_over(device):
    """A sequence in two parts, the second begun with the first's last state, is the sequence in one."""
    args = selective_scan_inputs(1, 8, 37, 2, device=device)
    whole, last, _ = selective_scan_forward(*args.values())
    cut = {n: (lambda t, n=n: t[..., :21]) if n in ("u", "delta", "z", "B", "C") else (lambda t: t) for n in args}
    rest = {n: (lambda t, n=n: t[..., 21:]) if n in ("u", "delta", "z", "B", "C") else (lambda t: t) for n in args}
    first, middle, _ = selective_scan_forward(*[cut[n](t) for n, t in args.items()])
    second, end, _ = selective_scan_forward(*[rest[n](t) for n, t in {**args, "initial_state": middle}.items()])
    torch.testing.assert_close(torch.cat([first, second], -1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optional", [False, True])
def test_sequences_in_segments(optional, channels_last, device, monkeypatch):
    monkeypatch.setattr(configs, "_LEAST_VISITS", 1)
    monkeypatch.setattr(configs, "_PROGRAMS", 2**20)  # as many segments as there are groups of tiles
    check_selective_scan(selective_scan_inputs(2, 6, 71, 2, 2, device=device, optional=optional), channels_last)


def test_errors_name_the_argument(device):
    args = selective_scan_inputs(1, 8, 12, 2, device=device)
    with pytest.raises(ValueError, match=r"delta has shape .* expected .* = \(B, D, L\)"):
        selective_scan_forward(*{**args, "delta": args["delta"][..., 1:]}.values())
    with pytest.raises(ValueError, match="not a multiple"):
        selective_scan_forward(
            *{**args, "B": args["B"].expand(1, 3, 2, 12), "C": args["C"].expand(1, 3, 2, 12)}.values()
        )


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("L", [1, 49, 63, 197, 372, 784, 1000])
def test_lengths(L, dtype, channels_last):
    check_selective_scan(selective_scan_inputs(2, 100, L, 8, 2, dtype=dtype, device="cuda"), channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 2, 3, 12, 16, 17, 64, 256])
@pytest.mark.parametrize(("softplus", "optional"), [(True, True), (False, False)])
def test_states(N, dtype, softplus, optional):
    args = selective_scan_inputs(2, 40, 197, N, dtype=dtype, device="cuda", softplus=softplus, optional=optional)
    check_selective_scan(args)


@pytest.mark.gpu
def test_two_runs_give_equal_bits():
    args = selective_scan_inputs(8, 384, 197, 16, dtype=torch.bfloat16, device="cuda")
    runs = []
    for _ in range(2):
        out, last, saved = selective_scan_forward(*args.values(), save=True)
        runs.append([out, last, *selective_scan_backward(out, *args.values(), saved)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_65535_channels():
    check_selective_scan(selective_scan_inputs(1, 70_000, 5, 2, device="cuda"))
