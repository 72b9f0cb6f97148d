"""The configs that docs/openmmlab.md shows are what the toolboxes build."""
import mmengine.registry
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import vmamba.openmmlab  # noqa: F401  (registers its modules)
from tests.support.openmmlab import CONFIGS
from tests.support.pages import read_page

BLOCKS = [block.text for block in read_page("docs/openmmlab.md").python]


def values(code):
    """What a piece of a config sets."""
    found = {}
    exec(code, found)
    return found


def block(word):
    """The first piece of a config that names something."""
    return next(text for text in BLOCKS if word in text)


def test_backbone_fits_its_neck():
    model = values(block("custom_imports"))["model"]
    model["backbone"].pop("pretrained")
    backbone = mmengine.registry.MODELS.build(model["backbone"])
    assert list(backbone.out_channels) == model["neck"]["in_channels"]


def test_plain_backbone_and_its_neck():
    found = values(f"dictionary = dict({block('plain=True')})")["dictionary"]
    backbone, neck = (mmengine.registry.MODELS.build(found[name]) for name in ("backbone", "neck"))
    with torch.no_grad():
        maps = neck(backbone(torch.zeros(1, 3, 64, 96)))
    assert len(maps) == found["neck"]["num_outs"]


def test_layer_decay():
    backbone = mmengine.registry.MODELS.build({"type": "TimmFeatureBackbone", "model_name": "test_vmamba"})
    config = values(block("decay_rate"))["optim_wrapper"]
    wrapper = build_optim_wrapper(torch.nn.ModuleDict({"backbone": backbone}), config)
    assert len({group["lr"] for group in wrapper.optimizer.param_groups}) > 3


def test_family_config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(block("_base_").replace('"_base_/', f'"{CONFIGS}/mmseg/_base_/'))
    model = Config.fromfile(path).model
    backbone = mmengine.registry.MODELS.build({**model.backbone, "pretrained": False})
    assert list(backbone.out_channels) == model.decode_head.in_channels
    assert model.auxiliary_head.in_channels == backbone.out_channels[2]


def test_augmentation():
    found = eval(block("Albumentations"))
    assert mmengine.registry.TRANSFORMS.build(found).transforms == found["transforms"]
