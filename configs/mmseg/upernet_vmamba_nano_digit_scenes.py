_base_ = ["_base_/upernet_small.py", "_base_/digit_scenes.py", "_base_/runtime.py"]
# as the detector on the same scenes left it: configs/mmdet/mask_rcnn_vmamba_nano_fpn_digit_scenes.py
model = dict(backbone=dict(pretrained="runs/openmmlab/mask_rcnn_vmamba_nano_fpn_digit_scenes/epoch_8.pth"))
default_hooks = dict(checkpoint=dict(interval=1000))
