"""UperNet with narrow heads, for small images on a CPU or one GPU."""
_base_ = "upernet.py"
_norm = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    backbone=dict(model_name="vmamba_nano"),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=48, num_classes=11, norm_cfg=_norm),
    auxiliary_head=None)
