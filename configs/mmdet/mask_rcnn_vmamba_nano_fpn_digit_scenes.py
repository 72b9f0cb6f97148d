_base_ = ["_base_/mask_rcnn_small.py", "_base_/digit_scenes.py", "_base_/runtime.py"]
