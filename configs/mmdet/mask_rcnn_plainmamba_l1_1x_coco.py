_base_ = ["_base_/mask_rcnn.py", "_base_/coco_instance.py", "_base_/schedule_1x.py", "_base_/runtime.py"]
model = dict(
    backbone=dict(model_name="plainmamba_l1", plain=True, pretrained=True, drop_path_rate=0.2),
    neck=dict(_delete_=True, type="SimpleFeaturePyramid", in_channels=192, out_channels=256, num_outs=5))
