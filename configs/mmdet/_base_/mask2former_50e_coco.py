"""Mask2Former for instances of COCO: 50 epochs at batch 16, large-scale jitter at 1024 x 1024.

A config sets the backbone's ``model_name`` and the head's ``in_channels``.
"""
_base_ = ["detector.py", "coco_instance.py", "runtime.py", "../../_base_/mask2former.py"]

num_classes = 80
image_size = (1024, 1024)
model = dict(
    type="Mask2Former",
    data_preprocessor=dict(
        pad_mask=True,
        batch_augments=[
            dict(type="BatchFixedSizePad", size=image_size, img_pad_value=0, pad_mask=True, mask_pad_value=0)]),
    panoptic_head=dict(
        **_base_.mask2former_head, num_things_classes=num_classes, num_stuff_classes=0),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes=num_classes, num_stuff_classes=0, loss_panoptic=None,
        init_cfg=None),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(
        panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100, iou_thr=0.8,
        filter_low_score=True))
model["panoptic_head"]["loss_cls"]["class_weight"] = [1.0] * num_classes + [0.1]  # the last one is "no object"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), resize_type="Resize", keep_ratio=True),
    dict(type="RandomCrop", crop_size=image_size, crop_type="absolute", recompute_bbox=True, allow_negative_crop=True),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(sampler=dict(type="InfiniteSampler"), dataset=dict(pipeline=train_pipeline))

# epochs are counted in iterations
train_cfg = dict(type="IterBasedTrainLoop", max_iters=368750, val_interval=5000)
param_scheduler = dict(
    type="MultiStepLR", begin=0, end=368750, by_epoch=False, milestones=[327778, 355092], gamma=0.1)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
