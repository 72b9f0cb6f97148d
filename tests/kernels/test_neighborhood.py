import pytest
import torch
from vmamba_kernels import neighborhood_apply_forward, neighborhood_weights_forward

from tests.kernels.support.checks import check_neighborhood


def inputs(B, H, W, n, D, window, dtype=torch.float32, device="cpu"):
    q, k, v = torch.randn(3, B, H, W, n, D, device=device)
    q, k, v = (q * D**-0.5).to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v, torch.randn(n, 2 * window - 1, 2 * window - 1, device=device)


@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(
    ("H", "W", "n", "D", "window"),
    [(1, 1, 1, 1, 3), (4, 7, 1, 5, 3), (2, 3, 2, 4, 5), (2, 50, 1, 4, 3), (1, 40, 1, 4, 17)],
)
def test_maps(H, W, n, D, window, dilated, device):
    check_neighborhood(*inputs(1, H, W, n, D, window, device=device), window, dilated)


def test_errors_name_the_argument(device):
    q, k, v, bias = inputs(1, 3, 3, 2, 4, 3, device=device)
    for change, message in [
        ({"k": k[..., :3]}, "k has shape"),
        ({"bias": bias[:, 1:]}, r"bias has shape \(2, 4, 5\), expected \(2, 5, 5\)"),
        ({"q": q.double()}, "q has dtype"),
        ({"window": 2}, "window is 2, expected an odd number"),
        ({"q": q[:0], "k": k[:0]}, "expected five axes, none empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            neighborhood_weights_forward(**{"q": q, "k": k, "bias": bias, "window": 3, "dilated": False, **change})
    with pytest.raises(ValueError, match="weights has shape"):
        neighborhood_apply_forward(torch.ones(1, 3, 3, 2, 4, device=device), v, 3, False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize(
    ("side", "n", "D", "window"), [(56, 1, 24, 11), (28, 2, 24, 9), (14, 4, 32, 7), (7, 8, 28, 7), (33, 2, 64, 7)]
)
def test_published_windows(side, n, D, window, dilated, dtype):
    check_neighborhood(*inputs(2, side, side, n, D, window, dtype, "cuda"), window, dilated)
