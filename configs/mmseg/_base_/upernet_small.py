"""UperNet with narrow heads, for small images on a CPU or one GPU."""
_base_ = "upernet.py"
_norm = dict(type="BN", requires_grad=True)
# 93 % of the pixels are background: cross-entropy alone stays for long where everything is; the Dice loss goes for the
# overlap with the digits, class 0 left out
_cross_entropy = dict(type="CrossEntropyLoss", use_sigmoid=False)
_losses = [_cross_entropy, dict(type="DiceLoss", use_sigmoid=False, ignore_index=0, loss_weight=3.0)]
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(model_name="vmamba_nano"),
    decode_head=dict(
        in_channels=[32, 64, 128, 256],
        channels=128,
        # the last map has 8x8 pixels; the mean over an image would be normalised over a number for each image
        pool_scales=(2, 3),
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=_losses),
    auxiliary_head=dict(
        in_channels=128,
        channels=128,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=dict(loss_weight=0.4, **_cross_entropy)))
