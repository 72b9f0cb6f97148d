import pytest
import torch
from vmamba_kernels import configs, ssd, ssd_backward, ssd_forward

from tests.kernels.support.checks import check_ssd, ssd_inputs

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("B", "L", "H", "P", "G", "N"),
    [
        (1, 1, 1, 1, 1, 1),
        (2, 13, 4, 3, 2, 5),
        (1, 64, 1, 16, 1, 16),
        (1, 67, 2, 17, 1, 20),
    ],
)
def test_shapes(B, L, H, P, G, N, causal, device):
    check_ssd(ssd_inputs(B, L, H, P, G, N, device=device, causal=causal))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [True, False])
def test_dtypes(dtype, causal, device):
    check_ssd(ssd_inputs(1, 70, 2, 8, 1, 8, dtype=dtype, device=device, causal=causal))


def test_float32_input_with_bfloat16_projections(device):
    args = ssd_inputs(1, 20, 2, 8, 1, 8, device=device)
    check_ssd(args | {name: args[name].bfloat16() for name in ("dt", "B", "C")}, limit=4e-3)  # rounded gradients


@pytest.mark.parametrize("skip", ["head", None])
@pytest.mark.parametrize("causal", [True, False])
def test_without_optional_inputs(skip, causal, device):
    without = {"skip": skip, "bias": False, "softplus": False, "initial": False}
    check_ssd(ssd_inputs(2, 20, 2, 4, 1, 6, device=device, causal=causal, **without))


@pytest.mark.parametrize(("causal", "initial"), [(True, True), (True, False), (False, True)])
def test_sequences_in_segments(causal, initial, device, monkeypatch):
    monkeypatch.setattr(ssd, "_ONE_WALK", 64)
    monkeypatch.setattr(ssd, "segment_length", lambda programs, tiles, multiple, tile: 1)  # of 64 steps
    check_ssd(ssd_inputs(1, 131, 2, 4, 1, 6, device=device, causal=causal, initial=initial))


def test_long_sequences_of_few_heads_are_cut_and_short_ones_never(device, monkeypatch):
    def pieces(batch, length):
        args = ssd_inputs(batch, length, 2, 1, 1, 1)
        args.pop("initial_state")
        return ssd._Problem(*args.values()).segments

    assert pieces(1, 1024) == 1
    assert pieces(1, 4096) > 4
    monkeypatch.setattr(configs, "_PROGRAMS", 4)
    assert pieces(4, 4096) == 1


def test_strided_inputs_and_constant_gradient(device):
    args = ssd_inputs(1, 20, 2, 6, 2, 5, device=device)
    packed = torch.full((1, 20, 2 * 6 + 7), float("nan"), device=device)
    packed[..., 7:] = args["x"].flatten(2)
    args["x"] = packed[..., 7:].unflatten(2, (2, 6))
    args["B"] = args["B"].permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)  # no axis of stride 1 last
    check_ssd(args)
    y, last = ssd_forward(*args.values())
    one = torch.ones(1, 1, 1, 1, device=device).expand(y.shape)
    strided = ssd_backward(one, *args.values(), last_state=last)
    plain = ssd_backward(one.contiguous(), *args.values(), last_state=last)
    assert all(torch.equal(a, b) for a, b in zip(strided, plain, strict=True))


@pytest.mark.parametrize("rate", [0.0, 1e-4, 1e4])
def test_extreme_decay(rate, device):
    args = ssd_inputs(1, 70, 2, 4, 1, 6, device=device)
    args["A"] = torch.full_like(args["A"], -rate)
    check_ssd(args, grads=False)
    y, last = ssd_forward(*args.values())
    assert all(torch.isfinite(g).all() for g in ssd_backward(torch.ones_like(y), *args.values(), last_state=last))


@pytest.mark.parametrize("shift", [-40.0, 30.0])
def test_extreme_step_sizes(shift, device):
    args = ssd_inputs(1, 20, 2, 4, 1, 6, device=device)
    args["dt_bias"] += shift
    check_ssd(args, limit=3e-5 if shift == 30 else None)  # hardly anything is left to depend on A


def test_images_and_heads_do_not_see_each_other(device):
    args = ssd_inputs(3, 20, 2, 4, 2, 6, device=device)
    y, _ = ssd_forward(*args.values())
    one = {n: t[1:2] if n in ("x", "dt", "B", "C", "initial_state") else t for n, t in args.items()}
    assert torch.equal(ssd_forward(*one.values())[0], y[1:2])


def test_errors_name_the_argument(device):
    args = ssd_inputs(1, 12, 4, 3, 2, 5, device=device)
    for change, message in [
        ({"dt": args["dt"][:, :, :3]}, r"dt has shape \(1, 12, 3\), expected \(1, 12, 4\)"),
        ({"C": args["C"][..., :4]}, "C has shape"),
        ({"x": args["x"].double()}, "x has dtype"),
        ({"D": args["D"][:, :2]}, r"D has shape \(4, 2\), expected \(4, 3\)"),
        ({"x": args["x"][:, :0], "dt": args["dt"][:, :0], "B": args["B"][:, :0], "C": args["C"][:, :0]}, "empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            ssd_forward(*{**args, **change}.values())
    with pytest.raises(ValueError, match="not a multiple of the G = 3 groups"):
        ssd_forward(*ssd_inputs(1, 12, 4, 3, 3, 5, device=device).values())
    with pytest.raises(ValueError, match=r"P = 256 channels and N = 128 states, expected a product of at most 16384"):
        ssd_forward(*ssd_inputs(1, 1, 1, 256, 1, 128, device=device).values())


# the full matrix, on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("L", [1, 31, 32, 33, 64, 65, 196, 784, 1024, 1025, 3136])
def test_lengths(L, causal, dtype):
    check_ssd(ssd_inputs(2, L, 6, 16, 2, 64, dtype=dtype, device="cuda", causal=causal))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("H", "P", "G", "N"),
    [
        (24, 16, 4, 64), (8, 64, 1, 128), (2, 64, 1, 64), (2, 48, 1, 48), (3, 40, 3, 17), (1, 1, 1, 1),
        (2, 128, 1, 128), (2, 64, 2, 256), (2, 256, 1, 16),
    ],
)  # fmt: skip
def test_widths(H, P, G, N, causal, dtype):
    check_ssd(ssd_inputs(2, 150, H, P, G, N, dtype=dtype, device="cuda", causal=causal))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_sequence(dtype, causal):
    check_ssd(ssd_inputs(1, 16384, 2, 16, 1, 16, dtype=dtype, device="cuda", causal=causal))


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("L", [784, 4096])
def test_two_runs_give_equal_bits(L, causal):
    args = ssd_inputs(8, L, 8, 16, 2, 64, dtype=torch.bfloat16, device="cuda", causal=causal)
    runs = []
    for _ in range(2):
        y, last = ssd_forward(*args.values())
        runs.append([y, last, *ssd_backward(y, *args.values(), last_state=last)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_past_2_to_31():
    args = ssd_inputs(1, 64, 48, 16, 4, 64, dtype=torch.bfloat16, device="cuda")
    batch = 2**31 // (64 * 48 * 16) + 2
    big = {n: t.expand(batch, *t.shape[1:]).contiguous() if n in ("x", "dt", "B", "C", "initial_state") else t
           for n, t in args.items()}  # fmt: skip
    y, last = ssd_forward(*big.values())
    assert torch.equal(y[-1], y[0])
    got = ssd_backward(y, *big.values(), last_state=last)
    assert torch.equal(got.x[-1], got.x[0])
    assert torch.equal(got.B[-1], got.B[0])
