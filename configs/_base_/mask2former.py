"""Mask2Former's head (Cheng et al., arXiv:2112.01527), for instances in mmdet and for classes in mmseg.

Names carry mmdet's scope, so that mmseg finds them there.
"""
_attention = dict(embed_dims=256, num_heads=8, dropout=0.0, batch_first=True)
_encoding = dict(num_feats=128, normalize=True)
_relu = dict(type="ReLU", inplace=True)

mask2former_head = dict(
    type="Mask2FormerHead",
    strides=[4, 8, 16, 32],
    feat_channels=256,
    out_channels=256,
    num_queries=100,
    num_transformer_feat_level=3,
    enforce_decoder_input_project=False,
    positional_encoding=_encoding,
    pixel_decoder=dict(
        type="mmdet.MSDeformAttnPixelDecoder",
        num_outs=3,
        norm_cfg=dict(type="GN", num_groups=32),
        act_cfg=dict(type="ReLU"),
        positional_encoding=_encoding,
        encoder=dict(
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(num_levels=3, num_points=4, **_attention),
                ffn_cfg=dict(
                    embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0, act_cfg=_relu)))),
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=9,
        layer_cfg=dict(
            self_attn_cfg=_attention,
            cross_attn_cfg=_attention,
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, num_fcs=2, ffn_drop=0.0, act_cfg=_relu)),
        init_cfg=None),
    loss_cls=dict(type="mmdet.CrossEntropyLoss", loss_weight=2.0, reduction="mean"),
    loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0, reduction="mean"),
    loss_dice=dict(
        type="mmdet.DiceLoss", use_sigmoid=True, activate=True, naive_dice=True, eps=1.0, loss_weight=5.0,
        reduction="mean"))

mask2former_train_cfg = dict(
    num_points=12544,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    assigner=dict(
        type="mmdet.HungarianAssigner",
        match_costs=[
            dict(type="mmdet.ClassificationCost", weight=2.0),
            dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
            dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
        ]),
    sampler=dict(type="mmdet.MaskPseudoSampler"))

_embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1, decay_mult=1.0), query_embed=_embedding, query_feat=_embedding,
            level_embed=_embedding)))
