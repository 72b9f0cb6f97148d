_base_ = ["_base_/retinanet.py", "_base_/coco_detection.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="vmamba_tiny", pretrained=True, drop_path_rate=0.2),
    neck=dict(in_channels=[192, 384, 768]))
