_base_ = "mask_rcnn_vmamba_nano_fpn_digit_scenes.py"
model = dict(
    backbone=dict(model_name="resnet18", out_norm=False),
    neck=dict(in_channels=[64, 128, 256, 512]))
