"""One table of tolerances for scans; a test that needs another one says why."""
import torch

# float32 and float64: rounding of sums over L steps in another order, far below any real fault.
# 16-bit: a few roundings of the output (or of the gradient) to the type itself.
TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-10},
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


def assert_close(actual, expected, dtype=None):
    """Compare at the scale of ``expected``, with the tolerance of ``dtype`` (that of ``actual`` if None)."""
    tolerance = TOLERANCES[dtype or actual.dtype]
    scale = max(1.0, expected.detach().abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance["rtol"], atol=tolerance["atol"] * scale)
