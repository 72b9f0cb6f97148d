_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="a2mamba_tiny", drop_path_rate=0.1),
    decode_head=dict(in_channels=[48, 96, 256, 448]),
    auxiliary_head=dict(in_channels=256))
