"""Every config: model, data pipelines and optimizer are built as written, and run a training step and a prediction.

Only sizes are brought down: images to an eighth of their sides, SyncBN to BatchNorm, which has no CPU version.
"""
import importlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from tests.openmmlab.conftest import HEIGHT, WIDTH

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DETECTION = sorted((CONFIGS / "mmdet").glob("*.py"))
SEGMENTATION = sorted((CONFIGS / "mmseg").glob("*.py"))
SHRINK = 8
SIZES = {"scale", "scales", "crop_size", "size", "max_size"}
MAX_FAMILY_LINES = 5


def shrunk(value, key=""):
    """A part of a config with every image size divided by `SHRINK`."""
    if isinstance(value, dict):
        return {k: shrunk(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(shrunk(v, key) for v in value)
    return value // SHRINK if key in SIZES and isinstance(value, int) else value


def load(path, root):
    """The config with small images from `root`, and nothing to download."""
    cfg = Config.fromfile(path)
    for name in ("train_dataloader", "val_dataloader"):
        dataset = cfg[name].dataset
        dataset.data_root = str(root)
        dataset.pipeline = shrunk(dataset.pipeline)
    cfg.model.data_preprocessor = shrunk(cfg.model.data_preprocessor)
    if "anchor_generator" in cfg.model.get("rpn_head", {}):
        cfg.model.rpn_head.anchor_generator.scales = [2]  # anchors that fit small images
    cfg.model.backbone.pretrained = False
    cfg.model.backbone.drop_path_rate = 0.0  # so that the one step reaches every block
    init_default_scope(cfg.default_scope)
    importlib.import_module(f"{cfg.default_scope}.utils").register_all_modules(init_default_scope=False)
    return cfg


def toolbox(cfg):
    return importlib.import_module(f"{cfg.default_scope}.registry")


def build(cfg):
    model = revert_sync_batchnorm(toolbox(cfg).MODELS.build(cfg.model))
    model.init_weights()
    return model


def batch(cfg, loader, indices):
    dataset = toolbox(cfg).DATASETS.build(cfg[loader].dataset)
    return pseudo_collate([dataset[i] for i in indices])


def train_step(cfg, model):
    """One step on two images; checks the losses, and that the step reaches the whole backbone."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    model.train()
    losses = model.train_step(batch(cfg, "train_dataloader", (0, 1)), optim_wrapper)
    assert losses
    assert all(torch.isfinite(v).all() for v in losses.values())
    still = [n for n, p in model.backbone.named_parameters() if torch.equal(p, before[n])]
    assert not still, "the step left these parameters as they were"


@pytest.mark.parametrize("path", DETECTION, ids=lambda p: p.stem)
def test_detection_config(path, coco_root):
    cfg = load(path, coco_root)
    model = build(cfg)
    train_step(cfg, model)
    model.eval()
    with torch.no_grad():
        sample, = model.test_step(batch(cfg, "val_dataloader", (0,)))
    found = sample.pred_instances
    assert sample.ori_shape == (HEIGHT, WIDTH)
    assert len(found.labels) == len(found.scores) == len(found.bboxes)
    assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    assert bool(((found.labels >= 0) & (found.labels < 80)).all())
    if "segm" in cfg.val_evaluator.metric:
        assert tuple(found.masks.shape) == (len(found.labels), HEIGHT, WIDTH)


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda p: p.stem)
def test_segmentation_config(path, ade_root):
    cfg = load(path, ade_root)
    model = build(cfg)
    train_step(cfg, model)
    model.eval()
    with torch.no_grad():
        sample, = model.test_step(batch(cfg, "val_dataloader", (0,)))
    labels = sample.pred_sem_seg.data
    assert tuple(labels.shape) == (1, HEIGHT, WIDTH)
    assert bool(((labels >= 0) & (labels < 150)).all())


def test_multi_scale_test_of_segmentation(ade_root):
    """The published MS figures: six scales and their mirror images are averaged."""
    cfg = load(CONFIGS / "mmseg" / "segformer_vmamba_tiny_160k_ade20k_512x512.py", ade_root)
    cfg.val_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    model = revert_sync_batchnorm(toolbox(cfg).MODELS.build(cfg.tta_model)).eval()
    data = batch(cfg, "val_dataloader", (0,))
    assert len(data["inputs"]) == 12
    with torch.no_grad():
        sample, = model.test_step(data)
    assert tuple(sample.pred_sem_seg.data.shape) == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize("path", [*DETECTION, *SEGMENTATION], ids=lambda p: p.stem)
def test_a_config_is_a_few_lines(path):
    assert len(path.read_text().splitlines()) <= MAX_FAMILY_LINES
