"""EfficientVMamba, MSVMamba and Spatial-Mamba against the official implementations, for every fixture there is."""
import importlib
import re

import pytest

from tests.goldens import GOLDENS
from tests.support.parity import assert_parity, build_official, load_golden

MODULES = {"efficientvmamba": "efficientvmamba", "msvmamba": "msvmamba", "spatialmamba": "spatial_mamba"}
FIXTURES = [str(path.relative_to(GOLDENS)) for family in MODULES for path in sorted((GOLDENS / family).glob("*.json"))]


def our_module(feature):
    """The name of our module whose output an official module's feature is."""
    feature = {"patch_embed": "stem", "classifier.norm": "norm", "layers.3": "stages.3"}.get(feature, feature)
    # an official stage ends with the downsampling that begins our next one
    feature = re.sub(r"^layers\.(\d)$", lambda m: f"stages.{int(m[1]) + 1}.downsample", feature)
    feature = re.sub(r"^layers\.", "stages.", feature)
    return re.sub(r"\.(op|self_attention)$", ".mixer", feature)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_logits_and_features(fixture):
    meta, tensors = load_golden(fixture)
    filter_fn = importlib.import_module(f"vmamba.models.{MODULES[meta['family']]}").checkpoint_filter_fn
    name = meta["model"].replace(meta["family"], MODULES[meta["family"]])
    model = build_official(meta, name, filter_fn)
    assert sum(p.numel() for p in model.parameters()) == meta["num_params"]
    assert_parity(model, meta, tensors, {feature: our_module(feature) for feature in meta["features"]})
