"""Pairs of digit scenes: one photograph at two dates, between which handwritten digits come, go and move.

Composed of the real parts of `digit_scenes`, with its splits. What also differs between the dates and is no change:
light and colour (gain, offset and gamma of each channel), noise, and a misregistration of up to `_SHIFT` pixels. Labels
are in the frame of the first date. Good for trying out change detection end to end without a download; it is not a
benchmark, and far easier than aerial images.
"""
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .digit_scenes import Digit, DigitScenes, paint

__all__ = ["ChangeScene", "ChangeScenes"]

_MAX_DIGITS = 5
_FATES = ("stays", "goes", "comes", "moves")
_CHANCES = (0.4, 0.2, 0.2, 0.2)
_SHIFT = 0.5
_NOISE = 3.0


@dataclass(frozen=True)
class ChangeScene:
    """One place at two dates.

    Attributes:
        first: [H, W, 3] uint8, RGB.
        second: [H, W, 3] uint8, RGB.
        first_labels: class of each pixel at the first date, 0 background, 1 to 10 the digits, [H, W] uint8.
        second_labels: the same at the second date.
    """

    first: np.ndarray
    second: np.ndarray
    first_labels: np.ndarray
    second_labels: np.ndarray

    @property
    def change(self) -> np.ndarray:
        """Where the classes differ, [H, W] bool."""
        return self.first_labels != self.second_labels


class ChangeScenes(Dataset):
    """Pairs of one split; pair `i` is the same for every count.

    Args:
        split: "train" or "validation".
        count: number of pairs, at least 1.
        size: height and width of the images in pixels, 64 to 300.
        seed: of everything that is drawn.

    Raises:
        UserError: unknown split, count or size out of range, or a package that holds the images is not installed.
    """

    def __init__(self, split: str, count: int, *, size: int = 192, seed: int = 0):
        self.scenes = DigitScenes(split, count, size=size, seed=seed)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> ChangeScene:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        rng = self.scenes.generator("pair", index)
        background = self.scenes.background(rng)
        placed: list[Digit] = []
        images = [background, background]
        labels = [np.zeros(background.shape[:2], dtype=np.uint8) for _ in range(2)]
        for _ in range(int(rng.integers(1, _MAX_DIGITS, endpoint=True))):
            fate = _FATES[rng.choice(len(_FATES), p=_CHANCES)]
            glyph, label = self.scenes.glyph(int(rng.integers(self.scenes.num_glyphs)))
            ink_seed = int(rng.integers(2**32))
            dates = {"stays": ((0, 1),), "goes": ((0,),), "comes": ((1,),), "moves": ((0,), (1,))}[fate]
            for shown_at in dates:
                found = self.scenes.place(rng, glyph, placed)
                if found is None:
                    continue
                ink, mask, box = found
                placed.append(Digit(label, mask, box))
                for date in shown_at:
                    # the same ink at both dates
                    images[date] = paint(np.random.default_rng(ink_seed), images[date], ink, mask)
                    labels[date][mask] = 1 + label
        return ChangeScene(_photograph(rng, images[0], 0.0), _photograph(rng, images[1], _SHIFT), *labels)


def _photograph(rng: np.random.Generator, image: np.ndarray, shift: float) -> np.ndarray:
    """The image [H, W, 3] of 0 to 255 as another day's light and camera show it, uint8."""
    height, width = image.shape[:2]
    right, down = rng.uniform(-shift, shift, size=2)
    moved = Image.fromarray(np.rint(np.clip(image, 0, 255)).astype(np.uint8)).transform(
        (width, height), Image.Transform.AFFINE, (1, 0, right, 0, 1, down), resample=Image.Resampling.BILINEAR)
    light = (np.asarray(moved, dtype=np.float64) / 255) ** rng.uniform(0.85, 1.18)
    light = light * rng.uniform(0.85, 1.15, size=3) + rng.uniform(-0.06, 0.06, size=3)
    noisy = 255 * light + rng.normal(0, _NOISE, size=image.shape)
    return np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
