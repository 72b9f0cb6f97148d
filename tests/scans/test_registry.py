import pytest
import torch

from vmamba.scans import (
    default_directions,
    list_scans,
    register_alias,
    register_numbered_path,
    register_path,
    register_scan,
    scan_length,
    scan_order,
    scan_tokens,
)


def test_tables_are_cached():
    assert scan_order("cross", (3, 4)) is scan_order("cross", [3, 4])
    assert scan_order("cross", (3, 4)) is not scan_order("cross", (4, 3))


def test_table_made_under_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        order = scan_order("h+w2", (11, 13))
        inverse = order.inverse
    assert not order.index.is_inference()
    assert not inverse.is_inference()


def test_table_made_under_another_default_device_is_real():
    with torch.device("meta"):
        order = scan_order("hilbert+w3", (3, 17))
    assert order.index.device.type == order.inverse.device.type == "cpu"
    assert order.covers


@pytest.mark.parametrize("name", list_scans())
def test_variants_of_any_order(name):
    order = scan_order(name, (3, 4))
    assert torch.equal(scan_order(f"{name}_flip", (3, 4)).index, order.index.flip(1))
    assert torch.equal(scan_order(f"{name}_t", (4, 3)).index, order.transpose().index)
    assert torch.equal(scan_order(f"{name}_turn", (3, 4)).index, order.mirror(0).mirror(1).index)
    token = scan_order(f"{name}_token", (3, 4))
    assert torch.equal(token.index, order.with_token().index)
    assert (token.num_tokens, token.length) == (order.num_tokens + 1, order.length + 1)
    assert scan_length(f"{name}_t", 4, 3) == scan_length(f"{name}_turn", 3, 4) == order.length


def test_class_tokens_of_walks_side_by_side():
    order = scan_order("v_token+w2_flip_token", (2, 3))
    assert torch.equal(order.index, scan_order("v+w2_flip", (2, 3)).with_token().index)
    assert scan_tokens("v_token+w2_flip_token", 2, 3) == 7


def test_plus_puts_directions_side_by_side():
    order = scan_order("cross+w3+hilbert4", (4, 5))
    assert default_directions("cross+w3+hilbert4") == order.num_directions == 9
    assert order.length == scan_length("cross+w3+hilbert4", 4, 5) == 36
    assert torch.equal(order.index[:4, :20], scan_order("cross", (4, 5)).index)
    assert (order.index[:4, 20:] == -1).all()
    assert torch.equal(order.index[4], scan_order("w3", (4, 5)).index[0])


@pytest.mark.parametrize("name", [name for name in list_scans() if name.endswith("4")])
def test_names_that_end_in_4_have_four_different_directions(name):
    for size in ((8, 8), (8, 16), (16, 9), (7, 7)):
        order = scan_order(name, size)
        assert order.num_directions == len({tuple(row.tolist()) for row in order.index}) == 4, size


def test_a_walk_is_a_function_of_height_and_width():
    @register_path("odd_then_even", four=True)
    def _odd_then_even(height, width):
        walk = torch.arange(height * width)
        return torch.cat([walk[1::2], walk[::2]])

    assert scan_order("odd_then_even", (1, 4)).index.tolist() == [[1, 3, 0, 2]]
    assert scan_order("odd_then_even4", (2, 2)).index.tolist() == [
        [1, 3, 0, 2], [2, 3, 0, 1], [2, 0, 3, 1], [1, 0, 3, 2]]
    assert {"odd_then_even", "odd_then_even4"} <= set(list_scans())


def test_a_numbered_walk_and_an_alias():
    @register_numbered_path("skip", length=lambda height, width, number: height * width - number)
    def _skip(height, width, number):
        return torch.arange(number, height * width)

    register_alias("skips", "skip1+skip2_flip")
    assert scan_order("skips", (2, 2)).index.tolist() == [[1, 2, 3], [3, 2, -1]]
    assert not scan_order("skips", (2, 2)).covers


def test_a_table_of_another_length_than_registered_is_refused():
    def build(height, width, directions):
        return torch.full((1, height * width + 2), -1, dtype=torch.int32)

    register_scan("padded", 1)(build)
    with pytest.raises(ValueError, match=r"registered for 6 steps at size \(2, 3\), but its table has 8"):
        scan_order("padded", (2, 3))
    register_scan("padded", 1, lambda height, width: height * width + 2)(build)
    assert scan_order("padded", (2, 3)).length == 8


def test_an_order_can_be_replaced():
    for walk in ([0, 1, 2], [2, 0, 1]):
        register_path("mine")(lambda height, width, walk=walk: torch.tensor(walk))
        assert scan_order("mine", (1, 3)).index.tolist() == [walk]
        assert scan_order("h+mine_flip", (1, 3)).index[1].tolist() == walk[::-1]


def test_copies_of_the_grid():
    assert scan_tokens("ms_half", 2, 3) == scan_tokens("ms_half_flip", 2, 3) == 18
    assert scan_tokens("h+w7", 2, 3) == 6


@pytest.mark.parametrize(("call", "message"), [
    (lambda: scan_order("croos", (2, 2)), "unknown scan order 'croos'; did you mean 'cross'"),
    (lambda: scan_order("h+hilbrt_flip", (2, 2)), "unknown scan order 'hilbrt'; did you mean 'hilbert'"),
    (lambda: scan_order("hilbert5", (2, 2)), "unknown scan order 'hilbert5'; did you mean 'hilbert' or 'hilbert4'"),
    (lambda: scan_order("zzz", (2, 2)), r"known orders: .*bidi, .*cross, .*uni, .* random_seed<number>, w<number>$"),
    (lambda: scan_order("", (2, 2)), "unknown scan order ''; known orders"),
    (lambda: scan_order("w0", (2, 2)), r"the window of an order 'w<K>' has K >= 1 tokens a side, got 0"),
    (lambda: scan_order("cross", (0, 2)), r"size must be two positive integers \(H, W\), got \(0, 2\)"),
    (lambda: scan_order("cross", (4,)), "size must be two positive integers"),
    (lambda: scan_order("cross", (2, 2), directions=3), "the order 'cross' has 4 directions, got 3"),
    (lambda: scan_order("hilbert4", (2, 2), directions=2), "the order 'hilbert4' has 4 directions, got 2"),
    (lambda: scan_order("h", (2, 2), directions=2), "the order 'h' has 1 direction, got 2"),
    (lambda: scan_order("h+ms_half", (2, 2)), r"the orders of 'h\+ms_half' walk different numbers of copies"),
    (lambda: scan_order("h_token+v", (2, 2)), r"the orders of 'h_token\+v' have different numbers of extra tokens"),
    (lambda: scan_order("h_token_t", (2, 2)), "transpose needs the tokens of an H x W grid, got 5 tokens of a 2x2"),
])
def test_wrong_requests_are_explained(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
