_base_ = ["_base_/upernet_small.py", "_base_/digit_scenes.py", "_base_/runtime.py"]
default_hooks = dict(checkpoint=dict(interval=500))
