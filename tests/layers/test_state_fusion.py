"""The fusion of states against the same written with torch's own padding."""
import pytest
import torch
import torch.nn.functional as F

from vmamba.layers.state_fusion import StateFusion


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 4)])
def test_is_a_sum_of_dilated_convolutions_with_replicate_padding(size):
    module = StateFusion(3)
    torch.nn.init.normal_(module.alpha)
    x = torch.randn(2, 3, *size)
    kernels = (module.kernel1, module.kernel3, module.kernel5)
    expected = sum(
        alpha * F.conv2d(F.pad(x, (d, d, d, d), mode="replicate"), kernel, dilation=d, groups=3)
        for alpha, d, kernel in zip(module.alpha, (1, 3, 5), kernels, strict=True))
    torch.testing.assert_close(module(x.permute(0, 2, 3, 1)), expected.permute(0, 2, 3, 1))
