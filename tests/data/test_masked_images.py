"""Images and masks go through the same geometry."""
import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data import create_dataset
from vmamba.data.masked_images import MaskedImages, augmented_view, evaluation_view
from vmamba.errors import UserError

CONFIG = {"input_size": [3, 32, 40], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bilinear",
          "crop_pct": 0.8, "crop_mode": "center"}


@pytest.fixture
def folder(tmp_path):
    """White rectangles on black, and masks of them."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for name in ("a", "b"):
            for number in range(2):
                picture = np.zeros((80, 120), dtype=np.uint8)
                top, left = rng.integers(5, 40), rng.integers(5, 60)
                picture[top:top + 30, left:left + 40] = 255
                for root in (tmp_path, tmp_path / "masks"):
                    place = root / split / name
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(place / f"{number}.png")
    return tmp_path


def dataset(folder, view, masks="masks/train"):
    images = create_dataset("", str(folder), "train")
    return MaskedImages(images, view, folder / masks if masks else None)


@pytest.mark.parametrize("view", [evaluation_view(CONFIG), augmented_view(CONFIG, (0.3, 1.0), 0.5)],
                         ids=["evaluation", "augmented"])
def test_the_mask_lies_on_the_object(folder, view):
    seen = 0
    for pixels, label, mask in dataset(folder, view):
        seen += int(mask.sum())
        assert (pixels.shape, mask.shape) == ((3, 32, 40), (32, 40))
        assert label in (0, 1)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        white = pixels[0] > 0       # 0.5 before it was normalised
        assert (white != mask.bool()).float().mean() < 0.06      # they differ along the edges, by the interpolation
    assert seen > 0     # a crop may miss it


def test_augmented_views_differ_and_follow_the_seed(folder):
    images = dataset(folder, augmented_view(CONFIG, (0.3, 1.0), 0.5))
    torch.manual_seed(5)
    first, second = images[0], images[0]
    torch.manual_seed(5)
    again = images[0]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[0], second[0])


def test_without_masks_everything_is_object(folder):
    assert dataset(folder, evaluation_view(CONFIG), masks=None)[0][2].eq(1).all()


def test_masks_that_do_not_fit(folder):
    with pytest.raises(UserError, match=r"4 of 4 masks are missing, such as .*nowhere"):
        dataset(folder, evaluation_view(CONFIG), "nowhere")
    Image.new("L", (3, 3)).save(folder / "masks" / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="is 3x3, but its image 120x80"):
        dataset(folder, evaluation_view(CONFIG))[0]
    with pytest.raises(UserError, match="masks belong to the images of a folder"):
        MaskedImages(create_dataset("digits"), evaluation_view(CONFIG), folder)
