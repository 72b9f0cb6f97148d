"""60,000 iterations of AdamW at batch 16 with learning rates that fall towards the input, as Vim trains."""
_base_ = "schedule_160k.py"
train_cfg = dict(max_iters=60000, val_interval=6000)
optim_wrapper = dict(
    constructor="TimmLayerDecayConstructor", paramwise_cfg=dict(decay_rate=0.92))
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1500, end=60000, by_epoch=False),
]
