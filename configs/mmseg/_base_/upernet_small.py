"""UperNet with narrow heads, for small images on a CPU or one GPU."""
_base_ = "upernet.py"
_norm = dict(type="BN", requires_grad=True)
# 93 % of the pixels are background: cross-entropy alone stays for long where everything is; the Lovász loss (Berman et
# al., arXiv:1705.08790) goes for the IoU of each class
_cross_entropy = dict(type="CrossEntropyLoss", use_sigmoid=False, class_weight=[0.2] + [1.0] * 10)
_losses = [_cross_entropy, dict(type="LovaszLoss", per_image=False, reduction="none")]
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(model_name="vmamba_nano"),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=64,
        # the last map has 5x5 pixels; the mean over an image would be normalised over eight numbers
        pool_scales=(2, 3),
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=_losses),
    auxiliary_head=dict(
        in_channels=128,
        channels=64,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=dict(loss_weight=0.4, **_cross_entropy)))
