"""albumentations in the toolboxes' pipelines: boxes, masks, labels and label maps stay together."""
import random

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import TRANSFORMS

import vmamba.openmmlab  # noqa: F401  (registers the transform)
from vmamba.data.digit_scenes import DigitScenes
from vmamba.errors import UserError

TURN = {"type": "Affine", "rotate": [25, 25], "p": 1.0}
FLIP = {"type": "HorizontalFlip", "p": 1.0}
SIZE = 96


@pytest.fixture(scope="module")
def scene():
    scene = next(scene for scene in DigitScenes("train", 20, size=SIZE) if len(scene.digits) >= 3)
    return scene


def corners(mask):
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def sample(scene, **more):
    """What the pipeline holds after images and annotations are loaded."""
    return {
        "img": scene.image[..., ::-1].copy(), "img_shape": (SIZE, SIZE), "img_path": "a.png",
        "gt_bboxes": HorizontalBoxes(np.array([corners(digit.mask) for digit in scene.digits], np.float32)),
        "gt_bboxes_labels": np.array([digit.label for digit in scene.digits]),
        "gt_ignore_flags": np.zeros(len(scene.digits), dtype=bool),
        "gt_masks": BitmapMasks([digit.mask.astype(np.uint8) for digit in scene.digits], SIZE, SIZE),
        "gt_seg_map": scene.label_map, "seg_fields": ["gt_seg_map"], **more}


def build(*transforms, **kwargs):
    return TRANSFORMS.build(dict(type="Albumentations", transforms=list(transforms), **kwargs))


def test_everything_is_mirrored(scene):
    before, out = sample(scene), build(FLIP)(sample(scene))
    assert np.array_equal(out["img"], before["img"][:, ::-1])
    assert np.array_equal(out["gt_seg_map"], before["gt_seg_map"][:, ::-1])
    assert np.array_equal(out["gt_masks"].masks, before["gt_masks"].masks[:, :, ::-1])
    left, top, right, bottom = before["gt_bboxes"].tensor.T
    assert torch.equal(out["gt_bboxes"].tensor, torch.stack([SIZE - right, top, SIZE - left, bottom], 1))
    assert np.array_equal(out["gt_bboxes_labels"], before["gt_bboxes_labels"])


@pytest.mark.parametrize("transform", [TURN, {"type": "CenterCrop", "height": 60, "width": 70}], ids=["turn", "crop"])
def test_masks_boxes_labels_and_label_map_agree(scene, transform):
    out = build(transform)(sample(scene))
    masks = out["gt_masks"].masks.astype(bool)
    assert out["img_shape"] == out["img"].shape[:2] == out["gt_seg_map"].shape == masks.shape[1:]
    assert len(masks) == len(out["gt_bboxes"]) == len(out["gt_bboxes_labels"]) == len(out["gt_ignore_flags"]) > 0
    assert out["gt_bboxes"].tensor.tolist() == [corners(mask) for mask in masks]
    for mask, label in zip(masks, out["gt_bboxes_labels"], strict=True):
        assert mask.sum() >= 16
        assert set(np.unique(out["gt_seg_map"][mask])) == {1 + label}


def test_transforms_see_rgb(scene):
    red = np.zeros((SIZE, SIZE, 3), np.uint8)
    red[..., 2] = 200       # BGR, as mmcv reads images
    out = build({"type": "RGBShift", "r_shift_limit": [50, 50], "g_shift_limit": [0, 0], "b_shift_limit": [0, 0],
                 "p": 1.0})(sample(scene, img=red))
    assert out["img"][0, 0].tolist() == [0, 0, 250]


def test_objects_outside_are_dropped_and_an_image_without_any_is_replaced(scene):
    left, top, right, bottom = (int(v) for v in corners(scene.digits[1].mask))
    crop = {"type": "Crop", "x_min": left, "y_min": top, "x_max": right, "y_max": bottom}
    out = build(crop)(sample(scene))
    assert out["gt_bboxes_labels"].tolist() == [scene.digits[1].label]
    assert out["gt_bboxes"].tensor.tolist() == [[0, 0, right - left, bottom - top]]
    assert build(crop, min_area=10_000)(sample(scene)) is None


def test_boxes_alone(scene):
    data = sample(scene)
    del data["gt_masks"], data["gt_seg_map"]
    first = data["gt_bboxes"].tensor[0].tolist()
    out = build({"type": "Crop", "x_min": int(first[0]), "y_min": int(first[1]), "x_max": SIZE, "y_max": SIZE})(data)
    assert out["gt_bboxes_labels"].tolist()[0] == scene.digits[0].label
    # albumentations computes boxes as parts of the image
    expected = [0, 0, first[2] - first[0], first[3] - first[1]]
    assert out["gt_bboxes"].tensor[0].tolist() == pytest.approx(expected, abs=1e-3)
    assert len(out["gt_bboxes"]) == len(out["gt_bboxes_labels"])


def test_polygons_become_bitmaps(scene):
    box = corners(scene.digits[0].mask)
    polygon = np.array([box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]], dtype=float)
    data = sample(scene, gt_masks=PolygonMasks([[polygon]], SIZE, SIZE), gt_bboxes=HorizontalBoxes([box]),
                  gt_bboxes_labels=np.array([3]), gt_ignore_flags=np.array([False]))
    out = build(FLIP)(data)
    assert isinstance(out["gt_masks"], BitmapMasks)
    assert out["gt_masks"].masks.sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.1)


def test_an_image_without_objects_stays_without(scene):
    data = sample(scene, gt_bboxes=HorizontalBoxes(np.zeros((0, 4), np.float32)), gt_bboxes_labels=np.zeros(0, int),
                  gt_ignore_flags=np.zeros(0, bool), gt_masks=BitmapMasks([], SIZE, SIZE))
    out = build(FLIP)(data)
    assert (len(out["gt_bboxes"]), len(out["gt_masks"]), out["gt_bboxes_labels"].shape) == (0, 0, (0,))


def test_segmentation_alone(scene):
    out = build(TURN)({"img": scene.image.copy(), "img_shape": (SIZE, SIZE), "gt_seg_map": scene.label_map})
    assert set(out) == {"img", "img_shape", "gt_seg_map"}
    assert set(np.unique(out["gt_seg_map"])) <= {0, *(1 + digit.label for digit in scene.digits)}


def test_draws_follow_the_seed_of_the_process(scene):
    transform = build({"type": "Affine", "rotate": [-40, 40], "p": 1.0})

    def run(seed):
        random.seed(seed)
        return [transform(sample(scene))["img"].tobytes() for _ in range(2)]

    assert run(0) == run(0)
    assert len({*run(0), *run(1)}) == 4


def test_bad_list():
    with pytest.raises(UserError, match="no transform 'HorizontalFlop'; near names: HorizontalFlip"):
        build({"type": "HorizontalFlop"})
