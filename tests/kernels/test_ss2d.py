import pytest
import torch
from vmamba_kernels import configs, ss2d_backward, ss2d_forward

from tests.kernels.support.checks import check_close, check_ss2d, ss2d_inputs, tolerance
from tests.kernels.support.reference import positions, ss2d_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_table(K, L, visits, tokens):
    """[K, visits]: ``tokens`` different positions per direction, the other slots padding."""
    table = torch.full((K, visits), -1, dtype=torch.int32)
    for k in range(K):
        table[k, torch.randperm(visits)[:tokens]] = torch.randperm(L)[:tokens].to(torch.int32)
    return table


@pytest.mark.parametrize(
    ("order", "K", "height", "width", "D", "R", "N"),
    [
        ("cross", 4, 3, 7, 40, 6, 1),
        ("cross", 4, 5, 4, 8, 20, 1),
        ("cross", 4, 1, 17, 3, 1, 1),
        ("cross", 4, 1, 1, 1, 1, 1),
        ("cross", 4, 9, 2, 33, 2, 2),
        ("bidi", 2, 1, 33, 8, 3, 1),
        ("bidi", 2, 1, 20, 8, 3, 4),
        ("uni", 1, 4, 4, 8, 2, 1),
        ("uni", 3, 2, 5, 8, 17, 3),
    ],
)
def test_orders(order, K, height, width, D, R, N, device):
    args = ss2d_inputs(2, height * width, D, R, N, K, device=device)
    check_ss2d(args, order, height=height, width=width)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("order", "N"), [("bidi", 1), ("bidi", 3), ("table", 2)])
def test_activations_of_its_own_for_each_direction(order, N, merge, device):
    args = ss2d_inputs(2, 20, 40, 3, N, K=2, device=device, own=True)
    args["x"] = args["x"].permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)  # strided, as modules hand them over
    if order == "table":
        check_ss2d(args, index=random_table(2, 20, 24, 17).to(device), merge=merge)
    else:
        check_ss2d(args, order, height=1, width=20, merge=merge)


def test_the_state_as_output_needs_one_x(device):
    args = ss2d_inputs(1, 20, 8, 3, K=2, has_c=False, device=device, own=True)
    with pytest.raises(ValueError, match="C may be omitted only for N = 1 and one x for all directions"):
        ss2d_forward(*args.values(), order="bidi", height=1, width=20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 2])
def test_dtypes(dtype, N, device):
    check_ss2d(ss2d_inputs(1, 30, 33, 6, N, dtype=dtype, device=device), "cross", height=5, width=6)


def test_float32_input_with_bfloat16_projection(device):
    args = ss2d_inputs(1, 12, 8, 2, device=device)
    args["proj"] = args["proj"].bfloat16()
    check_ss2d(args, "cross", height=3, width=4, grads=False)  # to float32's tolerance
    check_ss2d(args, "cross", height=3, width=4, limit=tolerance(torch.bfloat16, device))


@pytest.mark.parametrize(("bias", "skip", "has_c"), [(False, True, True), (True, False, True), (True, True, False)])
def test_without_optional_inputs(bias, skip, has_c, device):
    check_ss2d(ss2d_inputs(1, 20, 8, 3, bias=bias, skip=skip, has_c=has_c, device=device), "cross", height=4, width=5)


@pytest.mark.parametrize("N", [1, 2])
@pytest.mark.parametrize(("L", "visits", "tokens"), [(12, 12, 12), (12, 21, 12), (12, 7, 5)])
def test_tables_with_padding_and_unvisited_tokens(L, visits, tokens, N, device):
    table = random_table(3, L, visits, tokens).to(device)
    check_ss2d(ss2d_inputs(1, L, 8, 2, N, K=3, device=device), index=table, index_covers=tokens == L)
    check_ss2d(ss2d_inputs(1, L, 8, 2, N, K=3, device=device), index=table, merge=False)


def test_a_table_of_a_closed_order_gives_the_same_bits(device):
    args = ss2d_inputs(1, 30, 40, 6, device=device)
    table = positions("cross", 4, 5, 6).to(device, torch.int32)
    y, _ = ss2d_forward(*args.values(), order="cross", height=5, width=6)
    z, _ = ss2d_forward(*args.values(), index=table)
    assert torch.equal(y, z)


def test_strided_and_shared_inputs(device):
    args = ss2d_inputs(2, 20, 16, 3, device=device)
    wide = torch.full((2, 20, 40), float("nan"), device=device)
    wide[..., 8:24] = args["x"]
    args["x"] = wide[..., 8:24]
    check_ss2d(args, "cross", height=4, width=5)
    _y, states = ss2d_forward(*args.values(), order="cross", height=4, width=5, save_states=True)
    dy = torch.randn(1, 1, 16, device=device).expand(2, 20, 16)  # stride 0
    got = ss2d_backward(dy, *args.values(), states, order="cross", height=4, width=5)
    same = ss2d_backward(dy.contiguous(), *args.values(), states, order="cross", height=4, width=5)
    assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))


@pytest.mark.parametrize("N", [1, 2])
@pytest.mark.parametrize("kind", ["cross", "bidi", "table"])
def test_sequences_in_segments(kind, N, device, monkeypatch):
    monkeypatch.setattr(configs, "_LEAST_VISITS", 1)
    monkeypatch.setattr(configs, "_PROGRAMS", 2**20)  # as many segments as there are groups of tiles
    args = ss2d_inputs(1, 54, 8, 3, N, device=device, delta_shift=-3.0)
    assert configs.segment_length(4, 7, 2, 8) == 2
    if kind == "table":
        check_ss2d(args, index=random_table(4, 54, 60, 50).to(device))
    else:
        check_ss2d(args, kind, height=6, width=9, merge=kind == "cross")


@pytest.mark.parametrize("shift", [-40.0, -12.0, 15.0, 30.0, 1e4])
def test_extreme_delta(shift, device):
    args = ss2d_inputs(1, 18, 8, 2, delta_shift=shift, device=device)
    check_ss2d(args, "uni", height=1, width=18, limit=3e-5 if shift == 1e4 else None)


@pytest.mark.parametrize("shift", [-30.0, 5.0, 12.0])
def test_extreme_decay(shift, device):
    args = ss2d_inputs(1, 18, 8, 2, a_shift=shift, device=device)
    how = {"order": "uni", "height": 1, "width": 18}
    check_ss2d(args, **how, grads=False)
    y, states = ss2d_forward(*args.values(), **how, save_states=True)
    gradients = ss2d_backward(torch.ones_like(y), *args.values(), states, **how)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_no_state_without_request_and_batch_invariance(device):
    args = ss2d_inputs(3, 20, 8, 2, device=device)
    how = {"order": "cross", "height": 4, "width": 5}
    y, states = ss2d_forward(*args.values(), **how)
    assert states is None
    one = {n: t[1:2] if n in ("x", "proj") else t for n, t in args.items()}
    assert torch.equal(ss2d_forward(*one.values(), **how)[0], y[1:2])


def test_empty_batch(device):
    args = ss2d_inputs(0, 20, 8, 2, device=device)
    y, states = ss2d_forward(*args.values(), order="cross", height=4, width=5, save_states=True)
    assert y.shape == (0, 20, 8)
    got = ss2d_backward(y, *args.values(), states, order="cross", height=4, width=5)
    assert got.x.shape == (0, 20, 8)
    assert torch.equal(got.dt_weight, torch.zeros_like(args["dt_weight"]))


def test_errors_name_the_argument(device):
    args = ss2d_inputs(1, 12, 8, 2, device=device)
    good = {"order": "cross", "height": 3, "width": 4}
    for change, message in [
        ({"dt_bias": torch.zeros(4, 9, device=device)}, r"dt_bias has shape \(4, 9\), expected \(4, 8\)"),
        ({"proj": args["proj"][..., :1]}, "proj has shape"),
        ({"x": args["x"].double()}, "x has dtype"),
        ({"dt_weight": args["dt_weight"].bfloat16()}, "dt_weight has dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            ss2d_forward(*{**args, **change}.values(), **good)
    with pytest.raises(ValueError, match="height x width"):
        ss2d_forward(*args.values(), order="cross", height=3, width=5)
    with pytest.raises(ValueError, match="order is 'spiral'"):
        ss2d_forward(*args.values(), order="spiral", height=3, width=4)
    with pytest.raises(ValueError, match="index has shape"):
        ss2d_forward(*args.values(), index=torch.zeros(3, 12, dtype=torch.int32, device=device))


# the full matrix, on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 2), (7, 7), (13, 13), (14, 14), (7, 11), (1, 196), (28, 28), (31, 31), (56, 56)],
    ids=lambda n: str(n),
)
def test_grids(height, width, dtype):
    check_ss2d(ss2d_inputs(2, height * width, 96, 6, dtype=dtype, device="cuda"), "cross", height=height, width=width)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("D", "R"), [(1, 1), (8, 6), (64, 12), (96, 6), (100, 48), (192, 12), (384, 24), (768, 48), (33, 64)]
)
def test_widths(D, R, dtype):
    check_ss2d(ss2d_inputs(2, 63, D, R, dtype=dtype, device="cuda"), "cross", height=7, width=9)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 2, 4, 5, 8, 16, 64])
@pytest.mark.parametrize(("order", "K"), [("uni", 1), ("bidi", 2), ("cross", 4), ("bidi", 8)])
def test_states_and_directions(N, order, K, dtype):
    check_ss2d(ss2d_inputs(2, 300, 48, 6, N, K, dtype=dtype, device="cuda"), order, height=15, width=20)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("R", [6, 24])
def test_tables(R, N, dtype):
    table = random_table(5, 200, 230, 190).cuda()
    check_ss2d(ss2d_inputs(2, 200, 96, R, N, 5, dtype=dtype, device="cuda"), index=table)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_sequence(dtype):
    check_ss2d(ss2d_inputs(1, 16384, 32, 2, K=2, dtype=dtype, device="cuda"), "bidi", height=128, width=128)


@pytest.mark.gpu
@pytest.mark.parametrize("N", [1, 16])
def test_two_runs_give_equal_bits(N):
    args = ss2d_inputs(16, 784, 192, 12, N, dtype=torch.bfloat16, device="cuda")
    how = {"order": "cross", "height": 28, "width": 28}
    runs = []
    for _ in range(2):
        y, states = ss2d_forward(*args.values(), **how, save_states=True)
        runs.append([y, states, *ss2d_backward(y, *args.values(), states, **how)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.gpu
@pytest.mark.slow
def test_more_than_65535_images():
    args = ss2d_inputs(70_000, 4, 8, 1, device="cuda")
    how = {"order": "cross", "height": 2, "width": 2}
    y, _ = ss2d_forward(*args.values(), **how)
    some = torch.tensor([0, 65_535, 65_536, 69_999], device="cuda")
    part = {n: t[some] if n in ("x", "proj") else t for n, t in args.items()}
    check_close("y", y[some], ss2d_reference(*part.values(), positions("cross", 4, 2, 2)).sum(1), 1e-5)


@pytest.mark.gpu
@pytest.mark.slow
def test_offsets_past_2_to_31():
    args = ss2d_inputs(1, 64, 768, 8, dtype=torch.bfloat16, device="cuda")
    batch = 2**31 // (64 * 768 * 4) + 2  # of y's and dx's elements, by direction
    big = {n: t.expand(batch, *t.shape[1:]).contiguous() if n in ("x", "proj") else t for n, t in args.items()}
    how = {"order": "cross", "height": 8, "width": 8}
    y, states = ss2d_forward(*big.values(), **how, merge=False, save_states=True)
    assert torch.equal(y[-1], y[0])
    got = ss2d_backward(y, *big.values(), states, **how)
    assert torch.equal(got.x[-1], got.x[0])
    assert torch.equal(got.proj[-1], got.proj[0])
