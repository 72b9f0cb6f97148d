"""Mask2Former on ADE20K, 160,000 iterations; a config sets the backbone's model and the head's in_channels."""
_base_ = ["segmentor.py", "ade20k.py", "runtime.py", "../../_base_/mask2former.py"]

custom_imports = dict(imports=["vmamba.openmmlab", "mmdet.models"], allow_failed_imports=False)
num_classes = 150
model = dict(decode_head=dict(
    **_base_.mask2former_head, num_classes=num_classes, align_corners=False, train_cfg=_base_.mask2former_train_cfg))
model["decode_head"]["loss_cls"]["class_weight"] = [1.0] * num_classes + [0.1]  # the last one is "no object"

train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(
        type="RandomChoiceResize", scales=[int(512 * x * 0.1) for x in range(5, 21)],
        resize_type="ResizeShortestEdge", max_size=2048),
    *_base_.train_pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=5000)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=160000, by_epoch=False)]
