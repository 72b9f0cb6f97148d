"""Tables of scan orders that a traced graph computes from the size of the grid."""
import pytest
import timm
import torch

from vmamba.errors import UserError
from vmamba.export.operators import InTorch
from vmamba.export.program import trace
from vmamba.scans import scan_order

# of the released models, and one of each kind of builder
TRACED = [
    "cross", "bidi", "uni", "atrous", "local4", "local4_token", "h+v_flip+w7+w7_flip", "snake4", "ms_half", "w3",
    "coarse_to_fine4", "spiral", "zigzag_turn", "diagonal4", "bitemporal_cross"]
SIZES = [(8, 9), (15, 10), (16, 16)]  # with more than one window: a traced program knows what holds for its example


class Table(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, grid):
        order = scan_order(self.name, grid.shape)
        return order.index, order.inverse


def traced(name):
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    return torch.export.export(Table(name), (torch.zeros(9, 12),), dynamic_shapes=(free,), strict=False)


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_table_is_the_order_s_at_every_size(name):
    module = traced(name).module()
    for size in SIZES:
        order = scan_order(name, size)
        index, inverse = module(torch.zeros(size))
        assert index.dtype == inverse.dtype == torch.int32
        assert torch.equal(index, order.index)
        assert torch.equal(inverse, order.inverse)


@pytest.mark.parametrize("name", ["hilbert4", "random_seed0"])
def test_orders_that_are_loops_over_tokens_cannot_be_traced(name):
    """They need a fixed size; a table of the example's size must not get into the graph instead."""
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        traced(name)


def test_a_model_with_a_random_order_is_refused_in_one_line():
    model = InTorch(timm.create_model("test_rsmamba").eval(), walks=True)
    with pytest.raises(UserError, match="for images of any size, try --fixed-size: random orders are drawn for a size"):
        trace(model, (3, 64, 64), fixed_size=False)


def test_a_traced_order_is_not_kept_for_others():
    traced("spiral")
    assert isinstance(scan_order("spiral", (8, 6)).index.shape[1], int)
    assert scan_order("spiral", (8, 6)) is scan_order("spiral", (8, 6))
