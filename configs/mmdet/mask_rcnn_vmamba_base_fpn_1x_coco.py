_base_ = ["_base_/mask_rcnn.py", "_base_/coco_instance.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="vmamba_base", pretrained=True, drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]))
