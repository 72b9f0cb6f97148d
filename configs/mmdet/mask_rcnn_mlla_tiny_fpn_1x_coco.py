_base_ = ["_base_/mask_rcnn.py", "_base_/coco_instance.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="mlla_tiny", drop_path_rate=0.2, model_args=dict(pad_odd=True)),
    neck=dict(in_channels=[64, 128, 256, 512]))
