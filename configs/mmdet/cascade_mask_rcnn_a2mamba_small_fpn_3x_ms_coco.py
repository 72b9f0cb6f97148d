_base_ = ["_base_/cascade_mask_rcnn.py", "_base_/coco_instance_ms.py", "_base_/schedule_3x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="a2mamba_small", pretrained=True, drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 320, 512]))
