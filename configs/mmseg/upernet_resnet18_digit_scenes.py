_base_ = "upernet_vmamba_nano_digit_scenes.py"
_detector = "runs/openmmlab/mask_rcnn_resnet18_fpn_digit_scenes/epoch_8.pth"
model = dict(
    backbone=dict(model_name="resnet18", pretrained=_detector, out_norm=False),
    decode_head=dict(in_channels=[64, 128, 256, 512]), auxiliary_head=dict(in_channels=256))
