_base_ = ["_base_/upernet_plain.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="localvim_tiny", pretrained=True, out_indices=(4, 9, 14, 19)),
    neck=dict(in_channels=192))
