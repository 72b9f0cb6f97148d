"""Every model of the suite as a backbone of mmdetection and mmsegmentation.

Configs import this package, ``custom_imports = dict(imports=["vmamba.openmmlab"])``, which registers its modules in
mmengine's root registries: mmdet, mmseg and every other toolbox on mmengine find them there by name.
"""
from .augmentation import Albumentations
from .backbone import TimmFeatureBackbone
from .layer_decay import TimmLayerDecayConstructor
from .pyramid import SimpleFeaturePyramid

__all__ = ["Albumentations", "SimpleFeaturePyramid", "TimmFeatureBackbone", "TimmLayerDecayConstructor"]
