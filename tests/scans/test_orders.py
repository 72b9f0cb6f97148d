import json

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS
from vmamba.scans import ScanOrder, default_directions, list_scans, register_scan, scan_length, scan_order, scan_tokens

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


def test_padding_and_tokens_never_visited():
    order = ScanOrder("x", (2, 2), torch.tensor([[3, -1, 0, 1]], dtype=torch.int32), 4)
    assert order.has_padding
    assert order.inverse.tolist() == [[2, 3, -1, 0]]


def test_tables_are_cached():
    assert scan_order("cross", (3, 4)) is scan_order("cross", [3, 4])
    assert scan_order("cross", (3, 4)) is not scan_order("cross", (4, 3))


def test_table_made_under_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        order = scan_order("cross", (11, 13))
        inverse = order.inverse
    assert not order.index.is_inference()
    assert not inverse.is_inference()


def test_a_table_of_another_length_than_registered_is_refused(monkeypatch):
    def build(height, width, directions):
        return torch.full((1, height * width + 2), -1, dtype=torch.int32)

    monkeypatch.setattr("vmamba.scans.registry._SCANS", {})
    register_scan("padded", 1)(build)
    with pytest.raises(ValueError, match=r"registered for 6 steps at size \(2, 3\), but its table has 8"):
        scan_order("padded", (2, 3))
    register_scan("padded", 1, lambda height, width: height * width + 2)(build)
    assert scan_order("padded", (2, 3)).length == 8


@pytest.mark.parametrize(("call", "message"), [
    (lambda: scan_order("croos", (2, 2)), "unknown scan order 'croos'; did you mean 'cross'"),
    (lambda: scan_order("zzz", (2, 2)), "known orders: .*bidi, .*cross, .*uni"),
    (lambda: scan_order("cross", (0, 2)), r"size must be two positive integers \(H, W\), got \(0, 2\)"),
    (lambda: scan_order("cross", (4,)), "size must be two positive integers"),
    (lambda: scan_order("cross", (2, 2), directions=3), "the order 'cross' has 4 directions, got 3"),
    (lambda: ScanOrder("x", (2, 2), torch.tensor([[0, 4]], dtype=torch.int32), 4), r"index must lie in \[-1, 3\]"),
    (lambda: ScanOrder("x", (2, 2), torch.tensor([[0, 1]]), 4), "index must be an int32 tensor"),
])
def test_wrong_requests_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
