"""Digit scenes (``tools/make_digit_scenes.py``) with boxes and masks; a short schedule from scratch."""
_base_ = "coco_instance.py"
data_root = "data/digit_scenes/"
_classes = dict(classes=tuple("0123456789"))
_size = (160, 160)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=_size, ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type="RandomCrop", crop_size=_size),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=_size),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        indices=1200,   # of the scenes, which is enough for boxes, in minutes on a CPU
        ann_file="annotations/train.json",
        data_prefix=dict(img="images/train/"),
        filter_cfg=dict(min_size=8),
        metainfo=_classes,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/validation.json",
        data_prefix=dict(img="images/validation/"),
        metainfo=_classes,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/validation.json")
test_evaluator = val_evaluator

_epochs = 8
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=_epochs, val_interval=2)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=150),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=1, end=_epochs, eta_min=1e-5, convert_to_iter_based=True),
]
randomness = dict(seed=0)
