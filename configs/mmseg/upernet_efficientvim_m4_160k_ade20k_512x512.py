_base_ = ["_base_/upernet.py", "_base_/ade20k.py", "_base_/schedule_160k.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="efficientvim_m4", pretrained=True), auxiliary_head=dict(in_channels=320, in_index=1),
    decode_head=dict(in_channels=[224, 320, 512], in_index=[0, 1, 2]))
find_unused_parameters = True   # the weights by which its classifier mixes the stages
