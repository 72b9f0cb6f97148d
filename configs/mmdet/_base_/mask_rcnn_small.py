"""Mask R-CNN with narrow heads, for images of about 160 pixels with some upright objects of a fifth to half of that."""
_base_ = "mask_rcnn.py"
_channels = 64
_norm = dict(type="GN", num_groups=8)       # batches are small, and nothing is pretrained
model = dict(
    backbone=dict(model_name="vmamba_nano"),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=_channels, num_outs=4, norm_cfg=_norm),
    rpn_head=dict(
        in_channels=_channels,
        feat_channels=_channels,
        anchor_generator=dict(ratios=[1.0, 2.0, 4.0], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=_channels, roi_layer=dict(sampling_ratio=1)),
        mask_roi_extractor=dict(out_channels=_channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            conv_out_channels=_channels,
            in_channels=_channels,
            fc_out_channels=256,
            num_classes=10,
            norm_cfg=_norm),
        mask_head=dict(
            num_convs=2, in_channels=_channels, conv_out_channels=_channels, num_classes=10, norm_cfg=_norm)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5))),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=20)))
