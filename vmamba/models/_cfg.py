"""What the pretrained configurations of all families have in common."""
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

__all__ = ["classifier_cfg"]


def classifier_cfg(top1: float | None = None, **kwargs: Any) -> dict[str, Any]:
    """Fields of a ``timm`` configuration: an ImageNet-1K classifier for 224 x 224 images.

    Args:
        top1: ImageNet-1K top-1 accuracy in percent that the authors published for these weights; None for none.
        kwargs: Fields of the family and variant, which win.
    """
    return {
        "url": "", "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": (7, 7),
        "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv", "classifier": "head.fc", "license": "apache-2.0",
        **({"notes": (f"ImageNet-1K top-1 {top1} % (published)",)} if top1 is not None else {}),
        **kwargs,
    }
