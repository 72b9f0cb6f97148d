import pytest
import timm
import torch

from tests.support.scans import gradients, ss2d_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import ss2d_scan
from vmamba.scans import ScanOrder, register_scan, scan_order


def random_order(height, width, directions, padding=0, skipped=0, seed=0):
    """Random walks, with ``padding`` slots of padding inside and ``skipped`` tokens never visited, per direction."""
    g = torch.Generator().manual_seed(seed)
    tokens = height * width
    rows = []
    for _ in range(directions):
        row = torch.cat([torch.randperm(tokens, generator=g)[skipped:], torch.full((padding,), -1)])
        rows.append(row[torch.randperm(len(row), generator=g)])
    return ScanOrder("random walk", (height, width), torch.stack(rows).int(), tokens)


def run(arguments, order, backend, merge="sum"):
    y = ss2d_scan(*arguments, order, merge=merge, backend=backend)
    return (y, *gradients(y, arguments))


@pytest.mark.parametrize("merge", ["sum", None])
@pytest.mark.parametrize(("states", "readout"), [(1, True), (1, False), (2, True), (16, True)])
@pytest.mark.parametrize(("name", "directions"), [("uni", 1), ("uni", 4), ("bidi", 2), ("bidi", 4), ("cross", 4)])
def test_registered_orders_match_reference(name, directions, states, readout, merge):
    arguments = ss2d_arguments(directions=directions, states=states, readout=readout, dtype=torch.float64)
    order = scan_order(name, (3, 5), directions)
    for actual, expected in zip(
            run(arguments, order, "torch", merge), run(arguments, order, "reference", merge), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2), (7, 11), (1, 196), (13, 14), (90, 3), (3, 90)])
@pytest.mark.parametrize("states", [1, 3])
def test_sizes(size, states):
    height, width = size
    arguments = ss2d_arguments(height=height, width=width, states=states, dtype=torch.float64)
    order = scan_order("cross", size)
    for actual, expected in zip(run(arguments, order, "torch"), run(arguments, order, "reference"), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("merge", ["sum", None])
@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize(("padding", "skipped"), [(0, 0), (4, 0), (0, 5), (3, 5), (6, 3)])
def test_tables_match_reference(padding, skipped, states, merge):
    arguments = ss2d_arguments(directions=2, states=states, dtype=torch.float64)
    order = random_order(3, 5, 2, padding, skipped)
    for actual, expected in zip(
            run(arguments, order, "torch", merge), run(arguments, order, "reference", merge), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("merge", ["sum", None])
@pytest.mark.parametrize("states", [1, 3])
@pytest.mark.parametrize("walk", ["bidi", "padded", "partial"])
def test_activations_of_its_own_for_each_direction(walk, states, merge):
    arguments = ss2d_arguments(directions=2, states=states, dtype=torch.float64, own=True)
    order = scan_order("bidi", (3, 5)) if walk == "bidi" else random_order(3, 5, 2, 4, 5 * (walk == "partial"))
    for actual, expected in zip(
            run(arguments, order, "torch", merge), run(arguments, order, "reference", merge), strict=True):
        assert_close(actual, expected)


def test_equal_activations_are_those_of_all_directions():
    arguments = ss2d_arguments(states=2)
    order = scan_order("cross", (3, 5))
    own = (arguments[0].unsqueeze(2).expand(-1, -1, 4, -1), *arguments[1:])
    assert_close(ss2d_scan(*own, order), ss2d_scan(*arguments, order))


def test_table_equals_index_arithmetic():
    arguments = ss2d_arguments(height=6, width=9)
    named = scan_order("cross", (6, 9))
    table = ScanOrder("a table", named.size, named.index, named.num_tokens)
    for actual, expected in zip(run(arguments, table, "torch"), run(arguments, named, "torch"), strict=True):
        assert_close(actual, expected)


def test_a_registered_table_is_an_order_like_any_other():
    """What a user does who adds a scan: one function, and every operator and model takes its name."""
    @register_scan("odd_then_even", directions=4)
    def _odd_then_even(height, width, directions):
        walk = torch.arange(height * width, dtype=torch.int32)
        walk = torch.cat([walk[1::2], walk[::2]])
        return torch.stack([walk, walk.flip(0)] * (directions // 2))

    arguments = ss2d_arguments(dtype=torch.float64)
    order = scan_order("odd_then_even", (3, 5))
    for actual, expected in zip(run(arguments, order, "torch"), run(arguments, order, "reference"), strict=True):
        assert_close(actual, expected)
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*ss2d_arguments(), "odd_then_even", 3, 5, None, True))
    model = timm.create_model("test_vmamba", scan="odd_then_even")
    model(torch.randn(2, 3, 32, 48)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("tile", [2 * 4 * 16 * 4, 2 * 16 * 4, 1], ids=["images", "directions", "one direction"])
def test_tiles_match_the_whole(monkeypatch, tile, states):
    arguments = ss2d_arguments(batch=5, height=4, width=4, states=states)
    order = scan_order("cross", (4, 4))
    expected = run(arguments, order, "torch")
    monkeypatch.setattr("vmamba.ops._torch_ss2d.TILE_ELEMENTS", tile * states)
    for actual, whole in zip(run(arguments, order, "torch"), expected, strict=True):
        assert_close(actual, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("states", [1, 16])
def test_low_precision_matches_float64(states, dtype):
    arguments = ss2d_arguments(height=9, width=8, states=states, dtype=dtype, channels=8)
    wide = tuple(a.detach().double().requires_grad_() for a in arguments)
    order = scan_order("cross", (9, 8))
    actual = run(arguments, order, "torch")
    assert actual[0].dtype == (torch.float32 if dtype == torch.float16 else dtype)
    for a, e in zip(actual, run(wide, order, "reference"), strict=True):
        assert_close(a, e, dtype=dtype)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_extreme_step_sizes(shift):
    arguments = list(ss2d_arguments(height=9, width=8, dtype=torch.float64))
    arguments[3] = (arguments[3].detach() + shift).requires_grad_()
    order = scan_order("cross", (9, 8))
    for actual, expected in zip(run(arguments, order, "torch"), run(arguments, order, "reference"), strict=True):
        assert torch.isfinite(actual).all()
        assert_close(actual, expected)


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("order", [scan_order("cross", (3, 4)), random_order(3, 4, 4, padding=2, skipped=1)],
                         ids=["cross", "table"])
def test_gradcheck(order, states):
    arguments = ss2d_arguments(batch=1, height=3, width=4, channels=2, states=states, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *a: ss2d_scan(*a, order), arguments)


@pytest.mark.parametrize(("name", "states", "merge"), [("cross", 1, True), ("cross", 3, True), ("bidi", 1, False)])
def test_opcheck(name, states, merge):
    arguments = ss2d_arguments(states=states)
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*arguments, name, 3, 5, None, merge))


@pytest.mark.parametrize("merge", [True, False])
def test_opcheck_with_activations_of_its_own_for_each_direction(merge):
    arguments = ss2d_arguments(directions=2, states=2, own=True)
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*arguments, "bidi", 3, 5, None, merge))


def test_opcheck_with_table():
    index = random_order(3, 5, 4, padding=3, skipped=1).index
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*ss2d_arguments(), "", 3, 5, index, True))


def test_absent_bias_and_skip():
    x, proj, dt_weight, _, A_log, _ = ss2d_arguments(dtype=torch.float64)
    arguments = (x, proj, dt_weight, None, A_log, None)
    order = scan_order("cross", (3, 5))
    for actual, expected in zip(run(arguments, order, "torch"), run(arguments, order, "reference"), strict=True):
        assert_close(actual, expected)


def test_strided_inputs():
    arguments = ss2d_arguments(channels=8)
    order = scan_order("cross", (3, 5))
    expected = ss2d_scan(*arguments, order)
    x = torch.randn(2, 15, 16)
    x[..., ::2] = arguments[0].detach()
    proj = arguments[1].detach().permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert_close(ss2d_scan(x[..., ::2], proj, *arguments[2:], order), expected)


def test_two_runs_give_equal_bits():
    arguments, order = ss2d_arguments(height=20, width=17), scan_order("cross", (20, 17))
    for first, second in zip(run(arguments, order, "torch"), run(arguments, order, "torch"), strict=True):
        assert torch.equal(first, second)


def test_an_image_does_not_depend_on_its_batch():
    arguments, order = ss2d_arguments(batch=3), scan_order("cross", (3, 5))
    alone = ss2d_scan(arguments[0][1:2], arguments[1][1:2], *arguments[2:], order)
    assert_close(alone, ss2d_scan(*arguments, order)[1:2])


def test_export_with_dynamic_size():
    class Scan(torch.nn.Module):
        def forward(self, x, proj, dt_weight, dt_bias, A_log, D_skip):
            B, H, W, D = x.shape
            flat = x.reshape(B, H * W, D), proj.reshape(B, H * W, 4, 4)
            return torch.ops.vmamba.ss2d_scan(*flat, dt_weight, dt_bias, A_log, D_skip, "cross", H, W, None, True)[0]

    def maps(height, width):
        x, proj, *rest = (a.detach() for a in ss2d_arguments(height=height, width=width))
        return x.unflatten(1, (height, width)), proj.unflatten(1, (height, width)), *rest

    dims = {1: torch.export.Dim("H", min=2, max=64), 2: torch.export.Dim("W", min=2, max=64)}
    program = torch.export.export(Scan(), maps(3, 5), dynamic_shapes=(dims, dims, None, None, None, None))
    other = maps(8, 6)
    assert_close(program.module()(*other), Scan()(*other))


@pytest.mark.parametrize(("position", "tensor", "message"), [
    (0, torch.zeros(2, 15), r"x has shape \[2, 15\], but needs \[B, L, D\]"),
    (1, torch.zeros(2, 15, 4, 5), r"proj has shape \[2, 15, 4, 5\], but needs \[B, L, K, R \+ 2N\].*\[2, 15, 4, 4\]"),
    (2, torch.zeros(4, 3, 2), r"dt_weight has shape \[4, 3, 2\], but needs \[K, D, R\] = \[\*, 4, \*\]"),
    (3, torch.zeros(4, 5), r"dt_bias has shape \[4, 5\], but needs \[K, D\] = \[4, 4\]"),
    (4, torch.zeros(3, 4, 1), r"A_log has shape \[3, 4, 1\], but needs \[K, D, N\] = \[4, 4, \*\]"),
    (5, torch.zeros(4, 4, dtype=torch.int32), r"D_skip has dtype torch\.int32"),
])
def test_wrong_arguments_name_themselves(position, tensor, message):
    arguments = list(ss2d_arguments())
    arguments[position] = tensor
    with pytest.raises(ValueError, match=message):
        ss2d_scan(*arguments, scan_order("cross", (3, 5)))


def test_wrong_orders_are_refused():
    arguments = ss2d_arguments()
    with pytest.raises(ValueError, match=r"order is for 16 tokens \(grid 4x4\), but x has L = 15"):
        ss2d_scan(*arguments, scan_order("cross", (4, 4)))
    with pytest.raises(ValueError, match="order has 2 directions, but dt_weight has K = 4"):
        ss2d_scan(*arguments, scan_order("bidi", (3, 5)))
    with pytest.raises(ValueError, match="but the order is for 4 x 4 = 16"):
        torch.ops.vmamba.ss2d_scan(*arguments, "cross", 4, 4, None, True)
    with pytest.raises(ValueError, match="did you mean 'cross'"):
        torch.ops.vmamba.ss2d_scan(*arguments, "corss", 3, 5, None, True)
    with pytest.raises(ValueError, match="merge is 'mean'"):
        ss2d_scan(*arguments, scan_order("cross", (3, 5)), merge="mean")
