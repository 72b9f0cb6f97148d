"""Every published variant of the token families: its size, and that it runs, without computing anything."""
import pytest
import torch
from timm.models import create_model

import vmamba  # noqa: F401

PARAMETERS = {  # the specification's counts, with 1000 classes
    "vim_tiny_patch16_224": 7_148_008, "vim_small_patch16_224": 25_796_584, "vim_base_patch16_224": 97_598_440,
    "vim_tiny_patch16_stride8_224": 7_250_344, "vim_small_patch16_stride8_224": 26_001_256,
    "localvim_tiny": 7_994_152, "localvim_small": 27_783_784,
    "localvim_tiny_midcls": 7_994_536, "localvim_small_midcls": 27_784_552,  # a class token and its position more
    "plainmamba_l1": 7_551_656, "plainmamba_l2": 26_145_832, "plainmamba_l3": 50_956_456,
}
GRIDS = {  # of images of 224 x 224 and 207 x 161
    "vim_tiny_patch16_stride8_224": ((27, 27), (24, 19)), "vim_small_patch16_stride8_224": ((27, 27), (24, 19)),
    **{f"plainmamba_l{i}": ((14, 14), (13, 11)) for i in (1, 2, 3)},  # its stem pads
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_variants_have_the_published_size_and_run_on_meta(name):
    model = create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    for size, grid in zip(((224, 224), (207, 161)), GRIDS.get(name, ((14, 14), (12, 10))), strict=True):
        final, maps = model.forward_intermediates(torch.empty(2, 3, *size, device="meta"), indices=1)
        assert maps[0].shape == (2, model.num_features, *grid)
        assert model.forward_head(final).shape == (2, 1000)
