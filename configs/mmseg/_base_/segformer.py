"""The light head of SegFormer (Xie et al., arXiv:2105.15203), and its learning rate: ten times the backbone's.

A config sets the backbone's model and the head's in_channels.
"""
_base_ = ["segmentor.py", "schedule_160k.py"]
model = dict(decode_head=dict(
    type="SegformerHead",
    in_index=[0, 1, 2, 3],
    channels=256,
    dropout_ratio=0.1,
    num_classes=150,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    align_corners=False,
    loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))))
