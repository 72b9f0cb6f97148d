"""Configs of mmdet and mmseg on small synthetic datasets, for tests."""
import importlib
import json
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from PIL import Image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HEIGHT, WIDTH, IMAGES = 96, 128, 2
BOXES = ((8, 10, 50, 40), (60, 30, 50, 50))
SIZES = {"scale", "scales", "crop_size", "size", "max_size"}
SMALL, SHRINK = 300, 8


def toolbox(cfg):
    """The registries of the toolbox that a config is for."""
    return importlib.import_module(f"{cfg.default_scope}.registry")


def load_config(path, root):
    """The config as it is but for data from `root`, no download, and images an eighth as wide where they are large.

    Anchors follow, so that boxes have some.
    """
    cfg = Config.fromfile(path)
    # the pipeline of the digit scenes names no size
    large = max(_sizes(cfg.train_dataloader.dataset.pipeline), default=0) > SMALL
    for name in ("train_dataloader", "val_dataloader"):
        dataset = cfg[name].dataset
        dataset.data_root = str(root)
        (_write_coco if cfg.default_scope == "mmdet" else _write_labels)(cfg, dataset, root)
        if large:
            dataset.pipeline = _shrunk(dataset.pipeline)
    if large:
        cfg.model.data_preprocessor = _shrunk(cfg.model.data_preprocessor)
        if "rpn_head" in cfg.model:
            cfg.model.rpn_head.anchor_generator.scales = [2]
    cfg.model.backbone.pretrained = False
    init_default_scope(cfg.default_scope)
    importlib.import_module(f"{cfg.default_scope}.utils").register_all_modules(init_default_scope=False)
    return cfg


def build_model(cfg):
    """The config's model, initialised; its SyncBN, which has no CPU version, is BatchNorm."""
    model = revert_sync_batchnorm(toolbox(cfg).MODELS.build(cfg.model))
    model.init_weights()
    return model


def batch(cfg, loader, count):
    """The first images of a loader's dataset, through its pipeline."""
    dataset = toolbox(cfg).DATASETS.build(cfg[loader].dataset)
    return pseudo_collate([dataset[i] for i in range(count)])


def _sizes(value, key=""):
    """Every image size in a part of a config."""
    if isinstance(value, dict):
        return [size for k, v in value.items() for size in _sizes(v, k)]
    if isinstance(value, (list, tuple)):
        return [size for v in value for size in _sizes(v, key)]
    return [value] if key in SIZES and isinstance(value, int) else []


def _shrunk(value, key=""):
    """A part of a config with every image size brought down."""
    if isinstance(value, dict):
        return {k: _shrunk(v, k) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_shrunk(v, key) for v in value)
    return value // SHRINK if key in SIZES and isinstance(value, int) else value


def _write_pictures(folder, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / f"{image}{suffix}")


def _write_coco(cfg, dataset, root):
    """Noise images with two rectangles each, of the first two classes."""
    _write_pictures(root / dataset.data_prefix.img, ".png")
    classes = dataset.get("metainfo", {}).get("classes") or toolbox(cfg).DATASETS.get(dataset.type).METAINFO["classes"]
    annotations = [
        {"id": 2 * image + i, "image_id": image, "category_id": i, "iscrowd": 0, "bbox": [x, y, w, h], "area": w * h,
         "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for image in range(IMAGES) for i, (x, y, w, h) in enumerate(BOXES)]
    path = root / dataset.ann_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(IMAGES)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)]}))


def _write_labels(cfg, dataset, root):
    """Noise images with blocks of noise labels."""
    suffix = dataset.get("img_suffix", ".jpg")
    _write_pictures(root / dataset.data_prefix.img_path, suffix)
    folder = root / dataset.data_prefix.seg_map_path
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image in range(IMAGES):
        blocks = rng.integers(0, cfg.model.decode_head.num_classes, (4, 4), dtype=np.uint8)
        labels = np.kron(blocks, np.ones((HEIGHT // 4, WIDTH // 4), np.uint8))
        Image.fromarray(labels).save(folder / f"{image}.png")
