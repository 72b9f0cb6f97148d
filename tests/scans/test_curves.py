import pytest
import torch

from vmamba.scans import scan_order

SIZES = [(height, width) for height in range(1, 20) for width in range(1, 20)] + [(14, 14), (31, 64), (56, 37)]


def distances(order):
    """Steps' lengths in rows plus columns."""
    row, column = order.index // order.size[1], order.index % order.size[1]
    return row.diff(dim=1).abs() + column.diff(dim=1).abs()


@pytest.mark.parametrize("name", ["hilbert4", "spiral4", "snake4"])
def test_every_step_goes_to_a_neighbour(name):
    for size in SIZES:
        order = scan_order(name, size)
        assert order.covers, size
        assert (distances(order) == 1).all(), size


def hilbert_point(n, d):
    """Place at distance ``d`` on the Hilbert curve of an n x n grid, by the textbook's bit arithmetic."""
    x = y = 0
    s = 1
    while s < n:
        rx = d // 2 & 1
        ry = (d ^ rx) & 1
        if ry == 0:
            if rx == 1:
                x, y = s - 1 - x, s - 1 - y
            x, y = y, x
        x, y, d, s = x + s * rx, y + s * ry, d // 4, s * 2
    return x, y


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32])
def test_hilbert_is_hilberts_curve_on_powers_of_two(n):
    places = [hilbert_point(n, d) for d in range(n * n)]
    ours = scan_order("hilbert", (n, n)).index[0].tolist()
    assert ours in ([x * n + y for x, y in places], [y * n + x for x, y in places])


def test_hilbert_stays_in_a_neighbourhood_longer_than_rows():
    """Mean distance of tokens that are 16 steps apart, on a grid of no special size."""
    def spread(name):
        order = scan_order(name, (37, 50))
        row, column = order.index[0] // 50, order.index[0] % 50
        return ((row[16:] - row[:-16]).abs() + (column[16:] - column[:-16]).abs()).float().mean()

    assert spread("hilbert") < 0.5 * spread("snake_h")


@pytest.mark.parametrize(("name", "size", "walk"), [
    ("morton", (3, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]),
    ("diagonal", (3, 3), [0, 1, 3, 2, 4, 6, 5, 7, 8]),
    ("antidiagonal", (3, 3), [2, 1, 5, 0, 4, 8, 3, 7, 6]),
    ("zigzag", (3, 4), [0, 1, 4, 8, 5, 2, 3, 6, 9, 10, 7, 11]),
    ("spiral", (3, 4), [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]),
    ("spiral_t", (3, 4), [0, 4, 8, 9, 10, 11, 7, 3, 2, 1, 5, 6]),
    ("u_curve", (2, 4), [0, 1, 5, 4, 2, 3, 7, 6]),
    ("coarse_to_fine", (3, 5), [0, 4, 2, 10, 12, 14, 1, 3, 5, 6, 7, 8, 9, 11, 13]),
])
def test_small_tables_by_hand(name, size, walk):
    assert scan_order(name, size).index[0].tolist() == walk


def test_random_is_the_same_for_the_same_seed():
    orders = [scan_order(f"random_seed{seed}", (8, 8)).index for seed in (0, 1)]
    assert torch.equal(orders[0], scan_order("random", (8, 8)).index)
    assert not torch.equal(*orders)
    again = torch.randperm(64, generator=torch.Generator().manual_seed(1)).int()
    assert torch.equal(orders[1][0], again)
