"""Digit scenes (``tools/make_digit_scenes.py``) with label maps; minutes on a GPU, for a backbone that knows digits."""
# the scenes have 160: at more, the rims of strokes that are a few pixels wide are told apart. Training enlarges what it
# shows, so that testing wants more than training (Touvron et al., "Fixing the train-test resolution discrepancy")
_size = (256, 256)
_test_size = (288, 288)
_dataset = dict(
    type="BaseSegDataset",
    data_root="data/digit_scenes/",
    img_suffix=".png",
    metainfo=dict(
        classes=("background", *"0123456789"),
        palette=[
            [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48], [145, 30, 180],
            [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 190]]))

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(
        type="Albumentations",
        transforms=[
            # what moves into the image is ignored (255)
            dict(type="Affine", scale=(0.7, 1.6), rotate=(-15, 15), translate_percent=(-0.1, 0.1),
                 fill_mask=255, p=1.0),
            # there are thirteen photographs to learn backgrounds from: their colours, at least, are many
            dict(type="Compose", p=0.8, transforms=[
                dict(type="HueSaturationValue", hue_shift_limit=180, sat_shift_limit=60, val_shift_limit=0, p=0.8),
                dict(type="ChannelShuffle", p=0.3),
                dict(type="InvertImg", p=0.3),
                dict(type="ToGray", p=0.1),
            ]),
            dict(type="RandomBrightnessContrast", brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            dict(type="GaussianBlur", blur_limit=(3, 5), p=0.1),
        ]),
    dict(type="Resize", scale=_size),
    dict(type="PackSegInputs"),
]
# labels are loaded after Resize: the score is taken at the scenes' own size
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=_test_size),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"), pipeline=train_pipeline, **_dataset))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="images/validation", seg_map_path="labels/validation"),
        test_mode=True,
        pipeline=test_pipeline,
        **_dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

_iters = 4000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=_iters, val_interval=1000)
optim_wrapper = dict(
    type="OptimWrapper",
    # every parameter is a group of its own to mmengine: fused, each takes one launch
    optimizer=dict(type="AdamW", lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0), backbone=dict(lr_mult=0.3))))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=100, end=_iters, eta_min=1e-5),
]
randomness = dict(seed=0)
