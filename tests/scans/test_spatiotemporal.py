"""Orders with a time axis: small tables by hand, and what each direction of the bi-temporal ones promises."""
from itertools import pairwise

import pytest
import torch

from tests.support.scans import selective_scan_arguments
from vmamba.ops import selective_scan
from vmamba.scans import (
    VIDEO_SCANS,
    VIDEO_SCHEDULES,
    Route,
    ScanOrder,
    scan_order,
    video_order,
    video_routes,
    video_schedule,
)

FRAMES, PLACES = [0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]  # of two frames of 1 x 3 tokens
BY_HAND = {
    "spatial_first": [FRAMES], "temporal_first": [PLACES],
    "spatial_first_bidi": [FRAMES, FRAMES[::-1]], "temporal_first_bidi": [PLACES, PLACES[::-1]],
    "spatiotemporal_v1": [FRAMES, PLACES[::-1]],
    "spatiotemporal_v2": [FRAMES, PLACES, FRAMES[::-1], PLACES[::-1]],
}


@pytest.mark.parametrize("name", VIDEO_SCANS)
def test_clip_by_hand(name):
    order = video_order(name, (2, 1, 3))
    assert order.index.tolist() == BY_HAND[name]
    assert (order.name, order.size, order.num_tokens) == (name, (2, 1, 3), 6)


@pytest.mark.parametrize("name", VIDEO_SCANS)
def test_class_token_begins_walks_forwards_and_ends_walks_backwards(name):
    order = video_order(name, (2, 1, 3), class_token=True)
    assert order.num_tokens == 7
    for walk, route, plain in zip(order.index.tolist(), video_routes(name), BY_HAND[name], strict=True):
        shifted = [token + 1 for token in plain]
        assert walk == ([*shifted, 0] if route.reverse else [0, *shifted])


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 4, 3), (5, 1, 1), (3, 2, 4)])
@pytest.mark.parametrize("name", VIDEO_SCANS)
def test_clips_of_any_size(name, size):
    order = video_order(name, size)
    position = torch.arange(order.num_tokens).view(size)
    by_place = position.permute(1, 2, 0)
    for walk, route in zip(order.index, video_routes(name), strict=True):
        expected = (by_place if route.column else position).flatten()
        assert torch.equal(walk.long(), expected.flip(0) if route.reverse else expected)


def test_walks_forwards_come_first():
    """What a mixer that walks its half of the directions backwards takes for granted."""
    for routes in VIDEO_SCANS.values():
        if len(routes) > 1:
            assert [route.reverse for route in routes] == [False] * (len(routes) // 2) + [True] * (len(routes) // 2)


def test_bad_clips_are_refused():
    with pytest.raises(ValueError, match="unknown order of clips 'spatial'; did you mean 'spatial_first'"):
        video_order("spatial", (1, 2, 2))
    with pytest.raises(ValueError, match="unknown order of clips 'xyz'; known orders: spatial_first, temporal_first, "):
        video_order("xyz", (1, 2, 2))
    with pytest.raises(ValueError, match=r"size must be three positive integers \(T, H, W\), got \(0, 2, 2\)"):
        video_order("spatial_first", (0, 2, 2))


def test_schedules_over_blocks():
    spatial, temporal = "spatial_first_bidi", "temporal_first_bidi"
    assert {name: video_schedule(name, 5) for name in VIDEO_SCHEDULES} == {
        "spatial_then_temporal": [spatial, spatial, spatial, temporal, temporal],
        "temporal_then_spatial": [temporal, temporal, temporal, spatial, spatial],
        "alternating": [spatial, temporal, spatial, temporal, spatial]}
    assert video_schedule("spatiotemporal_v1", 2) == ["spatiotemporal_v1"] * 2
    with pytest.raises(ValueError, match="unknown order of clips 'alternate'; did you mean 'alternating'"):
        video_schedule("alternate", 4)


# two dates P = 0..3 and Q = 4..7 of a 2 x 2 map
PAIRS = {
    "bitemporal_sequential": [[0, 1, 4, 5, 2, 3, 6, 7], [0, 2, 1, 3, 4, 6, 5, 7]],
    "bitemporal_cross": [[0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7]],
    "bitemporal_sequential_tokens": [[0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 1, 3, 4, 6, 5, 7]],
    "bitemporal_cross_tokens": [[0, 4, 1, 5, 2, 6, 3, 7], [0, 4, 2, 6, 1, 5, 3, 7]],
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_by_hand(name):
    rows, columns = PAIRS[name]
    order = scan_order(name, (2, 2))
    assert order.num_tokens == 8
    assert order.index.tolist() == [rows, columns, rows[::-1], columns[::-1]]


@pytest.mark.parametrize("name", ["bitemporal_sequential", "bitemporal_cross"])
@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 2)])
def test_pair_is_the_cross_scan_of_the_dates_side_by_side(name, size):
    height, width = size
    first = torch.arange(height * width).view(size)
    second = first + height * width
    if name == "bitemporal_sequential":
        arranged = torch.cat([first, second], dim=1)
    else:
        arranged = torch.stack([first, second], dim=2).flatten(1)
    walk = scan_order("cross", (height, 2 * width)).index.long()
    assert torch.equal(scan_order(name, size).index.long(), arranged.flatten()[walk])


def test_sequential_is_date_after_date_in_two_directions_only():
    order = scan_order("bitemporal_sequential", (3, 4))
    changes = [(date[1:] != date[:-1]).sum().item() for date in order.index >= 12]
    assert changes == [5, 1, 5, 1]  # row by row, date after date, and both backwards
    tokenwise = scan_order("bitemporal_sequential_tokens", (3, 4)).index >= 12
    assert (tokenwise[:, 1:] != tokenwise[:, :-1]).sum(1).tolist() == [1] * 4


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("cuts", [(1, 2, 3), (4,), (1, 5)])
def test_a_clip_scanned_frame_by_frame_equals_the_whole(backend, cuts):
    """Spatial-first goes on from the state that the frames before have left, forwards and in its gradients."""
    frames, places = 6, 12
    arguments = selective_scan_arguments(length=frames * places, states=16, channels=8, seed=3)
    walk = video_order("spatial_first", (frames, 3, 4)).index[0]
    assert torch.equal(walk, torch.arange(frames * places, dtype=torch.int32))
    whole, last = selective_scan(**arguments, return_last_state=True, backend=backend)
    state, parts = arguments["initial_state"], []
    bounds = [0, *(cut * places for cut in cuts), frames * places]
    for begin, end in pairwise(bounds):
        pieces = {k: arguments[k][..., begin:end] for k in ("u", "delta", "B", "C", "z")}
        y, state = selective_scan(
            **{**arguments, **pieces, "initial_state": state}, return_last_state=True, backend=backend)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)
    inputs = [arguments[k] for k in ("u", "delta", "A", "B", "C", "D", "initial_state")]
    direction = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, inputs, direction)
    for actual, wanted in zip(torch.autograd.grad(torch.cat(parts, dim=-1), inputs, direction), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-5 * max(1.0, wanted.abs().max().item()), rtol=1e-5)


def test_routes_are_those_of_a_grid_of_frames_and_places():
    """T rows and H * W columns: how a mixer walks clips without a table."""
    assert video_routes("spatiotemporal_v1") == (Route(False, False), Route(True, True))
    stacked = ScanOrder.stack([scan_order("h", (3, 8)), scan_order("v_flip", (3, 8))])
    assert torch.equal(video_order("spatiotemporal_v1", (3, 2, 4)).index, stacked.index)
