"""Neighbourhood attention against a masked matrix of all positions, in plain torch and in the kernels."""
import pytest
import torch

from tests.support.tolerances import assert_close
from vmamba.ops import neighborhood_apply, neighborhood_weights
from vmamba.ops._torch_neighborhood import takers, windows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CPU = torch.device("cpu")
AXES = [(1, 3), (2, 3), (3, 3), (5, 3), (6, 3), (7, 3), (20, 3), (13, 5), (56, 11)]


@pytest.mark.parametrize(("extent", "window"), AXES)
@pytest.mark.parametrize("dilated", [False, True])
def test_windows_along_an_axis(extent, window, dilated):
    """Written out: the classes of the dilation one after the other, the window moved inwards at their ends."""
    dilation = max(1, min(extent // window, window)) if dilated else 1
    places, distances, valid = windows(extent, window, dilated, CPU)
    for i in range(extent):
        own = list(range(i % dilation, extent, dilation))
        rank = own.index(i)
        start = max(0, min(rank - window // 2, len(own) - window))
        expected = own[start:start + window]
        assert places[i][valid[i]].tolist() == expected
        assert distances[i][valid[i]].tolist() == [own.index(j) - rank + window - 1 for j in expected]
        assert i in expected


@pytest.mark.parametrize(("extent", "window"), AXES)
@pytest.mark.parametrize("dilated", [False, True])
def test_takers_are_the_inverse_of_windows(extent, window, dilated):
    places, _, valid = windows(extent, window, dilated, CPU)
    expected = sorted(
        (places[i, slot].item(), i, slot) for i in range(extent) for slot in range(window) if valid[i, slot])
    whose, slots, there = takers(extent, window, dilated, CPU)
    assert sorted(
        (place, whose[place, j].item(), slots[place, j].item())
        for place in range(extent) for j in range(2 * window - 1) if there[place, j]) == expected


def matrix(q, k, v, bias, window, dilated):
    """The same attention among all positions, with a mask: weights [B, H, W, n, H * W], and their sums."""
    _, H, W, n, _ = q.shape
    rows, columns = (windows(extent, window, dilated, CPU) for extent in (H, W))
    mask = torch.full((n, H * W, H * W), float("-inf"), dtype=torch.float64)
    for i in range(H):
        for j in range(W):
            for a in range(window):
                for b in range(window):
                    if rows[2][i, a] and columns[2][j, b]:
                        there = rows[0][i, a] * W + columns[0][j, b]
                        mask[:, i * W + j, there] = bias[:, rows[1][i, a], columns[1][j, b]]
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    return ((q @ k.mT + mask).softmax(-1) @ v).transpose(1, 2).unflatten(1, (H, W))


def arguments(size, window=3, batch=2, heads=2, channels=4, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, batch, *size, heads, channels, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(heads, 2 * window - 1, 2 * window - 1, generator=g, dtype=torch.float64)
    return [t.clone().requires_grad_() for t in (q, k, v, bias.to(torch.promote_types(dtype, torch.float32)))]


def attend(q, k, v, bias, window, dilated, backend):
    weights = neighborhood_weights(q, k, bias, window, dilated, backend=backend)
    return neighborhood_apply(weights, v, window, dilated, backend=backend)


def compare(tensors, window, dilated, backend, device="cpu"):
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = matrix(*exact, window, dilated)
    given = [t.detach().to(device).requires_grad_() for t in tensors]
    actual = attend(*given, window, dilated, backend)
    assert actual.dtype == tensors[2].dtype
    dtype = tensors[0].dtype
    assert_close(actual.cpu(), expected, dtype)
    seed = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    truth = torch.autograd.grad(expected, exact, seed)
    for ours, theirs in zip(torch.autograd.grad(actual, given, seed.to(actual)), truth, strict=True):
        assert_close(ours.cpu(), theirs, dtype)


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(("size", "window"), [((7, 10), 3), ((2, 4), 3), ((1, 1), 3), ((5, 11), 5), ((3, 2), 1)])
def test_is_the_attention_of_a_masked_matrix(size, window, dilated):
    compare(arguments(size, window), window, dilated, "torch")


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(("size", "window"), [((4, 7), 3), ((2, 1), 3), ((4, 6), 5)])
def test_kernels(size, window, dilated):
    compare(arguments(size, window, batch=1, heads=1, dtype=torch.float32), window, dilated, "triton", DEVICE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_narrow_types(dtype, backend):
    device = DEVICE if backend == "triton" else "cpu"
    compare(arguments((3, 7), batch=1, heads=1, dtype=dtype), 3, True, backend, device)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_maps_of_several_heads_side_by_side(backend):
    """Halves of the heads, and of what a projection gives, are read as they lie."""
    device = DEVICE if backend == "triton" else "cpu"
    qkv = torch.randn(1, 2, 6, 3 * 4 * 5, device=device)
    q, k, v = (t.unflatten(-1, (4, 5))[..., 2:, :] for t in qkv.chunk(3, dim=-1))
    bias = torch.randn(2, 5, 5, device=device)
    copies = [t.contiguous() for t in (q, k, v)]
    assert torch.equal(attend(q, k, v, bias, 3, False, backend), attend(*copies, bias, 3, False, backend))


def test_opcheck():
    q, k, v, bias = arguments((4, 5))
    torch.library.opcheck(torch.ops.vmamba.neighborhood_weights, (q, k, bias, 3, True))
    weights = neighborhood_weights(q, k, bias, 3, True).detach().requires_grad_()
    torch.library.opcheck(torch.ops.vmamba.neighborhood_apply, (weights, v, 3, True))


@pytest.mark.parametrize(("change", "message"), [
    ({"k": torch.zeros(2, 4, 5, 2, 3)}, r"k has shape \[2, 4, 5, 2, 3\], but needs \[B, H, W, n, D\]"),
    ({"bias": torch.zeros(2, 3, 5)}, r"bias has shape \[2, 3, 5\], but needs \[n, 2 K - 1, 2 K - 1\] = \[2, 5, 5\]"),
    ({"window": 4}, "window is 4, but needs an odd number"),
    ({"backend": "reference"}, "backend is 'reference', but needs one of 'auto', 'torch', 'triton'"),
])
def test_refusals(change, message):
    q, k, _, bias = arguments((4, 5))
    with pytest.raises(ValueError, match=message):
        neighborhood_weights(**{"q": q, "k": k, "bias": bias, "window": 3, **change})


def test_weights_of_another_window_are_refused():
    with pytest.raises(ValueError, match=r"weights has shape \[1, 2, 2, 1, 25\], but needs \[B, H, W, n, K \* K\]"):
        neighborhood_apply(torch.zeros(1, 2, 2, 1, 25), torch.zeros(1, 2, 2, 1, 4), 3)


# on a GPU


@pytest.mark.gpu
def test_two_runs_give_equal_bits():
    given = [t.detach().cuda().requires_grad_() for t in arguments((28, 28), 9, batch=8, dtype=torch.bfloat16)]
    runs = []
    for _ in range(2):
        y = attend(*given, 9, True, "triton")
        runs.append([y, *torch.autograd.grad(y, given, torch.ones_like(y))])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
