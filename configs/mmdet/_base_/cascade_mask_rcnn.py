"""Cascade Mask R-CNN (Cai and Vasconcelos, arXiv:1906.09756) with FPN."""
_base_ = "two_stage.py"

# (spread of the box targets, overlap of a positive) of the three stages
_stages = [([0.1, 0.1, 0.2, 0.2], 0.5), ([0.05, 0.05, 0.1, 0.1], 0.6), ([0.033, 0.033, 0.067, 0.067], 0.7)]
model = dict(
    type="CascadeRCNN",
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=spread),
                reg_class_agnostic=True,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0))
            for spread, _ in _stages
        ]),
    train_cfg=dict(rcnn=[
        dict(
            assigner=dict(
                type="MaxIoUAssigner", pos_iou_thr=overlap, neg_iou_thr=overlap, min_pos_iou=overlap,
                match_low_quality=False, ignore_iof_thr=-1),
            sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False)
        for _, overlap in _stages
    ]))
