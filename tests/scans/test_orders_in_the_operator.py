"""Orders that are no permutation of the map, through ``ss2d_scan``: by name, by table, and by the reference."""
import pytest
import torch

from tests.support.scans import gradients, ss2d_arguments
from tests.support.tolerances import assert_close
from vmamba.ops import ss2d_scan
from vmamba.scans import ScanOrder, scan_order

NAMES = ["atrous", "h+v_flip+w2+w3_flip", "ms_half", "window_then_global", "dimsum_jpeg8"]


@pytest.mark.parametrize("name", NAMES)
def test_name_table_and_reference_agree(name):
    order = scan_order(name, (3, 5))
    table = ScanOrder("a table", order.size, order.index, order.num_tokens)
    arguments = ss2d_arguments(
        height=3, width=5, directions=order.num_directions, tokens=order.num_tokens, dtype=torch.float64)
    expected = ss2d_scan(*arguments, order, backend="reference")
    expected = (expected, *gradients(expected, arguments))
    for variant in (order, table):
        y = ss2d_scan(*arguments, variant, backend="torch")
        for actual, wanted in zip((y, *gradients(y, arguments)), expected, strict=True):
            assert_close(actual, wanted)


@pytest.mark.parametrize("name", ["ms_half", "h+v_flip+w2+w3_flip"])
def test_opcheck(name):
    order = scan_order(name, (3, 4))
    arguments = ss2d_arguments(directions=order.num_directions, tokens=order.num_tokens)
    torch.library.opcheck(torch.ops.vmamba.ss2d_scan, (*arguments, name, 3, 4, None, True))


def test_the_state_is_carried_from_copy_to_copy():
    """A change of the last token of the first copy changes what the other copies give."""
    order = scan_order("ms_half", (2, 2))
    x, *rest = ss2d_arguments(directions=1, tokens=12, dtype=torch.float64, requires_grad=False)
    changed = x.clone()
    changed[:, 0] += 1  # copy 0 is walked backwards, so this is its last step
    difference = (ss2d_scan(changed, *rest, order) - ss2d_scan(x, *rest, order)).abs().sum((0, 2))
    assert (difference[1:4] == 0).all()
    assert (difference[[0, *range(4, 12)]] > 0).all()


def test_a_map_without_its_copies_is_refused():
    arguments = ss2d_arguments(height=3, width=4, directions=1)
    with pytest.raises(ValueError, match="x has L = 12 tokens, but the order is for 3 copies of 3 x 4 = 36"):
        torch.ops.vmamba.ss2d_scan(*arguments, "ms_half", 3, 4, None, True)
