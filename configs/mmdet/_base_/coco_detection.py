"""COCO 2017 at 1333 x 800, boxes only."""
_base_ = "coco_instance.py"

_boxes = dict(type="LoadAnnotations", with_bbox=True)
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type="LoadImageFromFile"), _boxes, *_base_.train_pipeline[2:]]))
val_dataloader = dict(dataset=dict(pipeline=[
    *_base_.test_pipeline[:2], _boxes, *_base_.test_pipeline[3:]]))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
