"""Orders of published models against tables made by the published code."""
import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tests.goldens import GOLDENS
from vmamba.scans import consistent_traverse, hilbert_voxels, morton_voxels, recap_order, scan_order, step_moves

TABLES = json.loads((GOLDENS / "scan_orders" / "scan_orders.json").read_text())["sizes"]
EXTRA = load_file(GOLDENS / "scan_orders" / "scan_orders_extra.safetensors")
PATHS = {  # published name -> ours
    "h": "h", "h_flip": "h_flip", "v": "v", "v_flip": "v_flip", "w2": "w2", "w2_flip": "w2_flip", "w7": "w7",
    "w7_flip": "w7_flip", "snake_h": "snake_h", "snake_h_rev": "snake_h_flip", "snake_v": "snake_v",
    "snake_v_rev": "snake_v_flip"}
MOVES = [name for name in PATHS if name.startswith("snake")]


def grid(size):
    height, width = size.split("x")
    return int(height), int(width)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("size", TABLES)
def test_path(size, name):
    assert scan_order(PATHS[name], grid(size)).index.tolist() == [TABLES[size][name]]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("size", TABLES)
def test_moves_of_plainmamba(size, name):
    moves = step_moves(scan_order(PATHS[name], grid(size)))
    assert moves.tolist() == [TABLES[size][f"{name}.direction_ids"]]


def test_moves_need_neighbours():
    with pytest.raises(ValueError, match="the order 'h' has steps that do not go to a neighbour"):
        step_moves(scan_order("h", (2, 3)))


@pytest.mark.parametrize("size", TABLES)
def test_quarters_of_efficientvmamba(size):
    expected = [TABLES[size][f"atrous2.{k}"] for k in range(4)]
    assert scan_order("atrous", grid(size)).index.tolist() == expected


@pytest.mark.parametrize("size", TABLES)
def test_half_resolution_sequence_of_msvmamba(size):
    key = next(key for key in TABLES[size] if key.startswith("ms_half"))
    height, width = grid(key.removeprefix("ms_half(on ").removesuffix(")"))
    walk = scan_order("ms_half", (height, width)).index[0]
    assert (walk % (height * width)).tolist() == TABLES[size][key]
    assert (walk // (height * width)).tolist() == [c for c in range(3) for _ in range(height * width)]


@pytest.mark.parametrize("size", [4, 6])
@pytest.mark.parametrize(("published", "ours"), [("sweep8", "sweep8"), ("zigma8", "snake8"), ("jpeg8", "jpeg8")])
def test_paths_of_dimsum(published, ours, size):
    assert scan_order(f"dimsum_{ours}", (size, size)).index.tolist() == EXTRA[f"dimsum_{published}_n{size}"].tolist()


@pytest.mark.parametrize("size", [(4, 4, 2), (5, 6, 3), (8, 8, 2)])
@pytest.mark.parametrize(("name", "published"), [
    ("u_curve", "xy_fwd"), ("u_curve_turn", "xy_inv"), ("u_curve_t", "yx_fwd"), ("u_curve_t_turn", "yx_inv")])
def test_height_first_curve_of_occmamba(size, name, published):
    order = scan_order(name, size[:2]).lift(size[2], axis=-1, fast=True)
    assert order.size == size
    assert order.index[0].tolist() == EXTRA[f"occmamba_h2he_{'x'.join(map(str, size))}_{published}"].tolist()


@pytest.mark.parametrize(("order", "key"), [
    (consistent_traverse((4, 3, 3), "xyz", released=True), "released_cts_code_xyz"),
    (consistent_traverse((4, 3, 3), "yxz", released=True), "released_cts_code_yxz"),
    (consistent_traverse((4, 3, 3), "zyx", released=True), "released_cts_code_zyx"),
    (morton_voxels((4, 3, 3)), "zorder_code"), (hilbert_voxels((4, 3, 3)), "hilbert_code")])
def test_voxel_orders_of_point_cloud_mamba(order, key):
    assert order.index[0].tolist() == EXTRA[f"pcm_{key}_4x3x3"].argsort(stable=True).tolist()


@pytest.mark.parametrize("axes", ["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"])
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 3), (3, 4, 5), (2, 1, 6)])
def test_consistent_traverse_goes_to_neighbours_along_the_first_axis_first(size, axes):
    walk = consistent_traverse(size, axes).index[0]
    places = [walk // (size[1] * size[2]), walk // size[2] % size[1], walk % size[2]]
    assert sorted(walk.tolist()) == list(range(size[0] * size[1] * size[2]))
    assert (sum(place.diff().abs() for place in places) == 1).all()
    first = "xyz".index(axes[0])
    assert places[first][:size[first]].tolist() == list(range(size[first]))


@pytest.mark.parametrize("size", [(1, 1, 1), (4, 3, 3), (3, 4, 5), (2, 1, 6), (1, 9, 1), (8, 8, 8)])
@pytest.mark.parametrize("order", [
    morton_voxels, hilbert_voxels, partial(consistent_traverse, axes="zxy", released=True)])
def test_voxel_orders_visit_every_voxel_once(order, size):
    walks = order(size)
    assert (walks.size, walks.num_directions) == (size, 1)
    assert sorted(walks.index[0].tolist()) == list(range(math.prod(size)))


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_hilberts_curve_goes_to_neighbours_in_cubes(side):
    places = torch.stack(torch.unravel_index(hilbert_voxels((side,) * 3).index[0].long(), (side,) * 3))
    assert (places.diff(dim=1).abs().sum(0) == 1).all()


@pytest.mark.parametrize(("size", "ratio"), [((1, 1), 1), ((2, 4), 2), ((6, 3), 3), ((8, 12), 4)])
def test_recapped_orders_visit_query_and_copies_of_the_support_once(size, ratio):
    order = recap_order(size, ratio)
    tokens = size[0] * size[1]
    assert order.index.sort(dim=1).values.tolist() == [list(range(2 * tokens))] * 4
    windows = order.index.view(4, ratio ** 2, 2, -1)    # the support, then a window of the query
    assert (windows[:, :, 0] >= tokens).all()
    assert (windows[:, :, 1] < tokens).all()


def test_axes_of_the_traverse_are_checked():
    with pytest.raises(ValueError, match="axes must be a permutation of 'xyz', got 'xyy'"):
        consistent_traverse((2, 2, 2), "xyy")
