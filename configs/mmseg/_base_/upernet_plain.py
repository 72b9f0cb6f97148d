"""UperNet on a plain backbone; a config sets the backbone's model and the neck's in_channels."""
_base_ = "upernet.py"
model = dict(
    backbone=dict(plain=True),
    neck=dict(type="SimpleFeaturePyramid", out_channels=256, num_outs=4),
    decode_head=dict(in_channels=[256] * 4),
    auxiliary_head=dict(in_channels=256))
