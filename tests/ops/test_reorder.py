import pytest
import torch

from vmamba.ops import reorder
from vmamba.scans import scan_order, step_moves


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["snake4", "h+w2+w2_flip", "atrous"])
def test_rows_follow_the_table(name, own):
    order = scan_order(name, (3, 5))
    x = torch.randn(2, 15, *([order.num_directions] if own else []), 4)
    steps = reorder(x, name, 3, 5, walk=True)
    assert steps.shape == (2, order.length, order.num_directions, 4)
    for k, row in enumerate(order.index.tolist()):
        rows = x[:, :, k] if own else x
        for t, token in enumerate(row):
            assert torch.equal(steps[:, t, k], rows[:, token] if token >= 0 else torch.zeros(2, 4))
    back = reorder(steps, name, 3, 5, walk=False)
    visited = (order.inverse >= 0).t().unsqueeze(-1)
    assert torch.equal(back, (x if own else x.unsqueeze(2)) * visited)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("walk", "rows"), [(True, 15), (False, 24)])
def test_gradients_and_registration(walk, rows, own):
    x = torch.randn(2, rows, *([3] if own else []), 2, dtype=torch.float64, requires_grad=True)
    arguments = (x, "h+w2+w2_flip", 3, 5, walk)
    assert torch.autograd.gradcheck(reorder, arguments)
    torch.library.opcheck(torch.ops.vmamba.reorder, arguments)


def test_arrivals_are_the_moves_of_the_walks():
    order = scan_order("snake4", (3, 4))
    arrivals = torch.ops.vmamba.arrivals(torch.zeros(1), "snake4", 3, 4)
    moves = step_moves(order)
    for k in range(4):
        for t in range(12):
            assert arrivals[order.index[k, t], k] == moves[k, t]
    torch.library.opcheck(torch.ops.vmamba.arrivals, (torch.zeros(1), "snake4", 3, 4))


def test_another_number_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"x has shape \[1, 14, 2\], but needs .* with S = 15 and K = 4"):
        reorder(torch.zeros(1, 14, 2), "snake4", 3, 5, walk=True)
