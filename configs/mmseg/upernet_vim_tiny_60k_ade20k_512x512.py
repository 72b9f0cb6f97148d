_base_ = ["_base_/upernet_plain.py", "_base_/ade20k.py", "_base_/schedule_60k_layer_decay.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="vim_tiny_patch16_224", pretrained=True, out_indices=(5, 11, 17, 23)),
    neck=dict(in_channels=192))
