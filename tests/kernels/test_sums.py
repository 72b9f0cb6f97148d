import pytest
import torch
from vmamba_kernels import Sums, _launch

from tests.kernels.support.checks import check_close

SHAPES = [(2, 300, 24), (70, 130), (1, 5), (3, 0, 8), (65, 1), (2, 3, 40)]


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_several_sums_at_once(count, device):
    torch.manual_seed(0)
    parts = [torch.randn(shape, device=device) for shape in SHAPES[:count]]
    sums = Sums()
    got = [sums.over_rows(t) for t in parts]
    sums.run()
    for t, out in zip(parts, got, strict=True):
        check_close(str(tuple(t.shape)), out, t.double().sum(-2), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(5000, 70), (150, 3), (0, 4), (300, 65)])
def test_rows_of_a_long_matrix(dtype, size, device):
    torch.manual_seed(0)
    x = torch.randn(size, device=device).to(dtype)
    sums = Sums()
    got = sums.over_all_rows(x.t().contiguous().t())
    sums.run()
    check_close("sum", got, x.double().sum(0), 1e-5)
    assert got.dtype == torch.float32


def test_sums_are_there_only_once_run(device, monkeypatch):
    launches = []
    launch = _launch.launch
    monkeypatch.setattr(_launch, "launch", lambda kernel, *a, **k: (launches.append(kernel), launch(kernel, *a, **k)))
    sums = Sums()
    sums.over_rows(torch.ones(3, 4, device=device))
    assert not launches
    sums.run()
    sums.run()
    assert len(launches) == 1
