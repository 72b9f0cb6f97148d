"""Every config: model, data pipelines and optimizer are built as written, and run a training step and a prediction."""
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper

from tests.support.openmmlab import CONFIGS, HEIGHT, WIDTH, batch, build_model, load_config, toolbox

DETECTION = sorted((CONFIGS / "mmdet").glob("*.py"))
SEGMENTATION = sorted((CONFIGS / "mmseg").glob("*.py"))
MAX_FAMILY_LINES = 5


def train_step(cfg, model):
    """One step on two images; checks the losses, and that gradients reach the whole backbone.

    Distributed training stops at parameters that no loss reaches, unless the config says that there are some.
    """
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optim_wrapper.zero_grad = lambda: None  # after the step: the gradients stay to be looked at
    model.train()
    losses = model.train_step(batch(cfg, "train_dataloader", 2), optim_wrapper)
    assert losses
    assert all(torch.isfinite(v).all() for v in losses.values())
    unreached = [n for n, p in model.backbone.named_parameters() if p.grad is None]
    assert bool(unreached) == cfg.get("find_unused_parameters", False), unreached


def predict(cfg, model):
    model.eval()
    with torch.no_grad():
        sample, = model.test_step(batch(cfg, "val_dataloader", 1))
    return sample


@pytest.mark.parametrize("path", DETECTION, ids=lambda p: p.stem)
def test_detection_config(path, tmp_path):
    cfg = load_config(path, tmp_path)
    model = build_model(cfg)
    train_step(cfg, model)
    found = predict(cfg, model).pred_instances
    assert len(found.labels) == len(found.scores) == len(found.bboxes)
    assert bool(((found.scores >= 0) & (found.scores <= 1)).all())
    assert bool((found.bboxes[:, 2:] <= torch.tensor([WIDTH, HEIGHT]) + 1e-3).all())
    if "segm" in cfg.val_evaluator.metric:
        assert tuple(found.masks.shape) == (len(found.labels), HEIGHT, WIDTH)


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda p: p.stem)
def test_segmentation_config(path, tmp_path):
    cfg = load_config(path, tmp_path)
    model = build_model(cfg)
    train_step(cfg, model)
    labels = predict(cfg, model).pred_sem_seg.data
    assert tuple(labels.shape) == (1, HEIGHT, WIDTH)
    assert bool(((labels >= 0) & (labels < cfg.model.decode_head.num_classes)).all())


def test_multi_scale_test_of_segmentation(tmp_path):
    """The published MS figures: six scales and their mirror images are averaged."""
    cfg = load_config(CONFIGS / "mmseg" / "segformer_vmamba_tiny_160k_ade20k_512x512.py", tmp_path)
    cfg.val_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    model = revert_sync_batchnorm(toolbox(cfg).MODELS.build(cfg.tta_model)).eval()
    data = batch(cfg, "val_dataloader", 1)
    assert len(data["inputs"]) == 12
    with torch.no_grad():
        sample, = model.test_step(data)
    assert tuple(sample.pred_sem_seg.data.shape) == (1, HEIGHT, WIDTH)


@pytest.mark.parametrize("path", [*DETECTION, *SEGMENTATION], ids=lambda p: p.stem)
def test_a_config_is_a_few_lines(path):
    assert len(path.read_text().splitlines()) <= MAX_FAMILY_LINES
