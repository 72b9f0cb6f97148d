"""Orders of published models against tables made by the published code."""
import json

import pytest

from tests.goldens import GOLDENS
from vmamba.scans import scan_order, step_moves

TABLES = json.loads((GOLDENS / "scan_orders" / "scan_orders.json").read_text())["sizes"]
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
