_base_ = ["_base_/upernet_plain.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="plainmamba_l1", pretrained=True, drop_path_rate=0.2),
    neck=dict(in_channels=192))
