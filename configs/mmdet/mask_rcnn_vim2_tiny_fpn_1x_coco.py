_base_ = ["_base_/mask_rcnn.py", "_base_/coco_instance.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="vim2_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]))
