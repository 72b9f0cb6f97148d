import json

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS
from vmamba.scans import ScanOrder, default_directions, list_scans, scan_length, scan_order, scan_tokens

SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (4, 3), (7, 7), (14, 9)]
META = json.loads((GOLDENS / "vmamba" / "op_cross_scan.json").read_text())
TENSORS = load_file(GOLDENS / "vmamba" / "op_cross_scan.safetensors")
OFFICIAL = {"cross2d": "cross", "unidi": "uni", "bidi": "bidi"}


@pytest.mark.parametrize("mode", OFFICIAL)
@pytest.mark.parametrize("size", [(c["H"], c["W"]) for c in META["cases"]])
def test_equals_official_table(mode, size):
    order = scan_order(OFFICIAL[mode], size, directions=4)
    prefix = f"h{size[0]}w{size[1]}.{mode}"
    assert torch.equal(order.index.long(), TENSORS[f"{prefix}.scan_index"])


@pytest.mark.parametrize("mode", OFFICIAL)
@pytest.mark.parametrize("size", [(c["H"], c["W"]) for c in META["cases"]])
def test_inverse_merges_as_official(mode, size):
    order = scan_order(OFFICIAL[mode], size, directions=4)
    prefix = f"h{size[0]}w{size[1]}.{mode}"
    walked = TENSORS[f"{prefix}.merge_in"].flatten(3)  # [2, 4, 3, T]
    merged = sum(walked[:, k][..., order.inverse[k].long()] for k in range(4))
    torch.testing.assert_close(merged, TENSORS[f"{prefix}.merge_out"])


ONCE_AMONG_THE_DIRECTIONS = {"atrous"}  # every other order visits each token once in each direction


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*list_scans(), "w2", "w3_flip", "w2_t", "h+v_flip+w7+w7_flip"])
def test_every_token_once_and_inverse(name, size):
    order = scan_order(name, size)
    assert order.index.shape == (default_directions(name), scan_length(name, *size))
    assert order.num_tokens == scan_tokens(name, *size)
    tokens = torch.arange(order.num_tokens, dtype=torch.int32)
    for row, inverse in zip(order.index, order.inverse, strict=True):
        visited = row[row >= 0]
        assert torch.equal(row[inverse[visited.long()].long()], visited)
        assert (inverse >= 0).sum() == len(visited)
        assert name in ONCE_AMONG_THE_DIRECTIONS or torch.equal(visited.sort().values, tokens)
    if name in ONCE_AMONG_THE_DIRECTIONS:
        assert torch.equal(order.index[order.index >= 0].sort().values, tokens)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 2), (3, 4)])
@pytest.mark.parametrize("name", ["cross", "atrous", "w2", "ms_half"])
def test_reverse_and_transpose_undo_themselves(name, size):
    order = scan_order(name, size)
    assert torch.equal(order.reverse().reverse().index, order.index)
    there = order.transpose()
    assert there.size == size[::-1]
    assert torch.equal(there.transpose().index, order.index)
    for axis in (0, 1):
        assert torch.equal(order.mirror(axis).mirror(axis).index, order.index)


def test_small_tables_by_hand():
    rows = scan_order("h", (2, 3))
    assert rows.transpose().index.tolist() == [[0, 2, 4, 1, 3, 5]]  # columns of a 3 x 2 grid
    assert rows.mirror(0).index.tolist() == [[3, 4, 5, 0, 1, 2]]
    assert rows.mirror(1).index.tolist() == [[2, 1, 0, 5, 4, 3]]
    assert scan_order("w2", (2, 3)).index.tolist() == [[0, 1, 3, 4, 2, -1, 5, -1]]
    assert scan_order("w2_flip", (2, 3)).index.tolist() == [[-1, 5, -1, 2, 4, 3, 1, 0]]
    assert scan_order("cascade", (2, 2)).index.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [3, 1, 2, 0]]
    assert scan_order("h+w2", (2, 3)).index.tolist() == [[0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 3, 4, 2, -1, 5, -1]]


def test_token_in_the_middle():
    order = scan_order("h+h_flip+w2", (2, 3)).with_token()
    assert order.num_tokens == 7
    assert order.index.tolist() == [  # the six tokens are now 0 1 2 4 5 6
        [0, 1, 2, 3, 4, 5, 6, -1, -1], [6, 5, 4, 3, 2, 1, 0, -1, -1], [0, 1, 4, 3, 5, 2, -1, 6, -1]]
    assert order.covers
    first = scan_order("v", (2, 2)).with_token(0)
    assert first.index.tolist() == [[0, 1, 3, 2, 4]]
    with pytest.raises(ValueError, match=r"position must lie in \[0, 4\], got 5"):
        scan_order("v", (2, 2)).with_token(5)


def test_windows_are_walked_by_the_inner_order():
    inner = ScanOrder("corner first", (1, 2), torch.tensor([[1, 0]], dtype=torch.int32), 2)
    assert inner.over_windows((2, 3)).index.tolist() == [[1, 0, -1, 2, 4, 3, -1, 5]]
    with pytest.raises(ValueError, match="over_windows needs the tokens of an H x W grid, got 5 tokens of a 2x2 grid"):
        scan_order("h", (2, 2)).with_token().over_windows((4, 4))


@pytest.mark.parametrize(("axis", "fast", "walk"), [
    (0, False, [0, 2, 1, 3, 4, 6, 5, 7]),  # frame by frame
    (0, True, [0, 4, 2, 6, 1, 5, 3, 7]),  # each place through the frames
    (-1, False, [0, 4, 2, 6, 1, 5, 3, 7]),  # layer by layer
    (-1, True, [0, 1, 4, 5, 2, 3, 6, 7]),  # each place through the heights
])
def test_lift(axis, fast, walk):
    order = scan_order("v", (2, 2)).lift(2, axis, fast)
    assert order.size == (2, 2, 2)
    assert order.index.tolist() == [walk]


def test_lift_keeps_padding():
    order = scan_order("w2", (2, 1)).lift(2, -1, fast=True)
    assert order.index.tolist() == [[0, 1, -1, -1, 2, 3, -1, -1]]
    with pytest.raises(ValueError, match="axis must be 0 or -1, got 1"):
        scan_order("h", (2, 2)).lift(2, 1)
    with pytest.raises(ValueError, match=r"lift needs an order of 4 tokens \(grid 2x2\), got 5"):
        scan_order("h", (2, 2)).with_token().lift(2)


def test_two_images_one_after_the_other_and_in_turn():
    first, second = scan_order("h", (1, 3)), scan_order("h_flip", (1, 3))
    assert ScanOrder.concatenate([first, second]).index.tolist() == [[0, 1, 2, 5, 4, 3]]
    both = ScanOrder.interleave([first, second])
    assert both.index.tolist() == [[0, 5, 1, 4, 2, 3]]
    assert both.size == (2, 1, 3)
    assert ScanOrder.concatenate([first, scan_order("w2", (1, 1))]).index.tolist() == [[0, 1, 2, 3, -1, -1, -1]]
    assert ScanOrder.concatenate([first, scan_order("h", (1, 1))]).size == (4,)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ScanOrder.stack([scan_order("h", (2, 3)), scan_order("h", (3, 2))]),
     "the order 'h' is for a 3x2 grid of 6 tokens, but 'h' is for 2x3 of 6"),
    (lambda: ScanOrder.concatenate([scan_order("h", (2, 2)), scan_order("bidi", (2, 2))]),
     r"orders that are joined need as many directions each, got \[1, 2\]"),
    (lambda: ScanOrder.interleave([scan_order("h", (2, 2)), scan_order("h", (2, 3))]),
     r"interleave needs orders of one length, got \[4, 6\]"),
    (lambda: ScanOrder("x", (2, 2), torch.tensor([[0, 1], [1, 1]], dtype=torch.int32), 4),
     "direction 1 of the order 'x' visits a token twice; let it walk copies of the grid"),
])
def test_orders_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_padding_and_tokens_never_visited():
    order = ScanOrder("x", (2, 2), torch.tensor([[3, -1, 0, 1]], dtype=torch.int32), 4)
    assert order.has_padding
    assert order.inverse.tolist() == [[2, 3, -1, 0]]


@pytest.mark.parametrize(("index", "message"), [
    (torch.tensor([[0, 4]], dtype=torch.int32), r"index must lie in \[-1, 3\] for 4 tokens"),
    (torch.tensor([[0, 1]]), "index must be an int32 tensor"),
])
def test_wrong_tables_are_explained(index, message):
    with pytest.raises(ValueError, match=message):
        ScanOrder("x", (2, 2), index, 4)
