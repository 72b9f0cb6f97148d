"""Input and backbone of every segmentor; a config sets the backbone's ``model_name``."""
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512)),
    backbone=dict(type="TimmFeatureBackbone"),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"))
