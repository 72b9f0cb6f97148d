_base_ = "_base_/mask2former_160k_ade20k.py"
model = dict(
    backbone=dict(model_name="vmamba_tiny", pretrained=True, drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]))
