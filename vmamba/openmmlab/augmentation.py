"""albumentations in the pipelines of mmdet and mmseg."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from vmamba.data.augmentation import build_compose, build_transforms, draw

__all__ = ["Albumentations"]


@TRANSFORMS.register_module()
class Albumentations:
    """Transforms of albumentations on an image and everything that is annotated on it.

    The toolboxes' own ``Albu`` runs with albumentations 2 as well, but the numbers that it draws follow no seed, are
    the same in every loader process, and its boxes grow with each rotation. Here they follow the seed that mmengine
    gives each process, and where there are masks, boxes are the smallest ones around them.

    Keys of ``results`` that are read and replaced, where they are present: ``img`` ([H, W, 3] uint8, BGR; the
    transforms see RGB), ``img_shape``, ``gt_bboxes``, ``gt_masks`` (polygons become bitmaps), ``gt_bboxes_labels``,
    ``gt_ignore_flags``, ``gt_seg_map``. Objects that leave the image are dropped.

    Args:
        transforms: For each transform a dict with its class name as ``type``, and its arguments; those that hold
            others have such a list as ``transforms``. What moves pixels fills label maps with 0 unless its
            ``fill_mask`` says otherwise.
        min_area: Objects of which fewer pixels (of the mask, or of the box if there is none) are left are dropped.

    Raises:
        UserError: A list that albumentations cannot build.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], min_area: int = 16) -> None:
        self.transforms = list(transforms)
        self.min_area = min_area
        self.compose = build_compose(build_transforms(self.transforms, "Albumentations"), boxes=True)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Transforms one sample; None, for which the dataset takes another one, if no object is left."""
        boxes, masks = results.get("gt_bboxes"), results.get("gt_masks")
        data: dict[str, Any] = {"image": np.ascontiguousarray(results["img"][..., ::-1])}
        if "gt_seg_map" in results:
            data["mask"] = results["gt_seg_map"]
        if masks is not None:
            # albumentations takes no empty list
            data["masks"] = list(masks.to_ndarray().astype(np.uint8)) or [np.zeros(data["image"].shape[:2], np.uint8)]
        corners = np.zeros((0, 4), np.float32) if boxes is None or masks is not None else boxes.tensor.numpy()
        out = draw(self.compose, **data, bboxes=corners, index=np.arange(len(corners)))

        results["img"] = np.ascontiguousarray(out["image"][..., ::-1])
        results["img_shape"] = out["image"].shape[:2]
        if "mask" in out:
            results["gt_seg_map"] = out["mask"]
        if boxes is None or not len(boxes):
            if masks is not None:
                results["gt_masks"] = _bitmaps(masks, np.zeros((0, *results["img_shape"]), np.uint8))
            return results
        if masks is not None:
            kept, corners = self._around(np.stack(out["masks"]))
            results["gt_masks"] = _bitmaps(masks, np.stack(out["masks"])[kept])
        else:
            corners = out["bboxes"]
            large = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) >= self.min_area
            corners, kept = corners[large], np.asarray(out["index"], dtype=int)[large]
        results["gt_bboxes"] = type(boxes)(torch.as_tensor(corners, dtype=torch.float32))
        for key in ("gt_bboxes_labels", "gt_ignore_flags"):
            if key in results:
                results[key] = results[key][kept]
        return results if len(kept) else None

    def _around(self, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks [N, H, W] -> which are large enough, and the smallest boxes around those: x1, y1, x2, y2 [M, 4]."""
        kept = np.flatnonzero(masks.sum((1, 2)) >= self.min_area)
        corners = np.zeros((len(kept), 4), np.float32)
        for row, mask in zip(corners, masks[kept], strict=True):
            y, x = np.nonzero(mask)
            row[:] = x.min(), y.min(), x.max() + 1, y.max() + 1
        return kept, corners

    def __repr__(self) -> str:
        return f"{type(self).__name__}(transforms={self.transforms}, min_area={self.min_area})"


def _bitmaps(masks: Any, array: np.ndarray) -> Any:
    """Masks [N, H, W] in mmdet's bitmap class, from which polygons are converted."""
    bitmap = masks if not hasattr(masks, "to_bitmap") else masks.to_bitmap()
    return type(bitmap)(array, *array.shape[1:])
