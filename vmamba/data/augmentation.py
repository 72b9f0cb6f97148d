"""Augmentation by albumentations, described by a list of its transforms, for `tools/train.py --aug albumentations`.

A YAML file holds the list; each entry names a class of albumentations as `type` and gives its arguments:

    - {type: RandomResizedCrop, size: input_size, scale: [0.7, 1.0]}
    - type: OneOf
      p: 0.3
      transforms:
        - {type: GaussianBlur, blur_limit: [3, 5]}
        - {type: GaussNoise, std_range: [0.02, 0.1]}

`input_size` stands for the height and width of the model's input. What albumentations only warns of, such as an
argument that a transform does not have, is an error here.
"""
import inspect
import os
import random
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, near_names, require

__all__ = ["AlbumentationsTransform", "albumentations_from_arguments", "build_compose", "build_transforms", "draw"]

_INPUT_SIZE = "input_size"


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")     # or importing it asks the network for a newer version
    return require("albumentations")


def build_transforms(
    specs: Sequence[Mapping[str, Any]], source: str, input_size: tuple[int, int] | None = None
) -> list[Any]:
    """Builds albumentations' transforms.

    Args:
        specs: for each transform a mapping with its class name as `type`, and its arguments. Those that hold others
            (`OneOf`, `Sequential`, ...) have a list of the same kind as `transforms`.
        source: where the list comes from, for error messages.
        input_size: height and width that the argument value "input_size" stands for.

    Raises:
        UserError: not such a list, an unknown transform, or arguments that it does not take.
    """
    if not isinstance(specs, Sequence) or isinstance(specs, str) or not specs:
        raise UserError(f"{source} must hold a list of transforms, such as - {{type: HorizontalFlip, p: 0.5}}")
    return [_build(spec, source, input_size) for spec in specs]


def _build(spec: Any, source: str, input_size: tuple[int, int] | None) -> Any:
    """Builds one transform, and those inside it."""
    library = _albumentations()
    if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
        raise UserError(f"{source}: a transform is written as {{type: NAME, argument: value}}, not {spec!r}")
    kinds = (library.BasicTransform, library.BaseCompose)
    known = {name: value for name, value in vars(library).items()
             if inspect.isclass(value) and issubclass(value, kinds) and not inspect.isabstract(value)}
    name = spec["type"]
    if name not in known:
        raise UserError(f"{source}: albumentations {library.__version__} has no transform {name!r}"
                        + near_names(name, known))
    arguments = {key: value for key, value in spec.items() if key != "type"}
    if "transforms" in arguments:
        arguments["transforms"] = build_transforms(arguments["transforms"], f"{source}: {name}", input_size)
    if input_size is not None:
        arguments = {key: input_size if isinstance(value, str) and value == _INPUT_SIZE else value
                     for key, value in arguments.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return known[name](**arguments)
        except (TypeError, ValueError, UserWarning) as error:
            message = re.sub(r"\s+For further information visit \S+", "", str(error))
            raise UserError(f"{source}: {name}: {message}") from error


def build_compose(transforms: Sequence[Any], boxes: bool = False, targets: Mapping[str, str] | None = None) -> Any:
    """Chains transforms.

    Args:
        transforms: see `build_transforms`.
        boxes: the chain takes `bboxes` as corners in pixels, with their `index`.
        targets: further images and masks that the same is done to: name -> "image" or "mask".
    """
    library = _albumentations()
    params = library.BboxParams(format="pascal_voc", label_fields=["index"]) if boxes else None
    return library.Compose(transforms, bbox_params=params, additional_targets=dict(targets or {}))


def draw(compose: Any, **data: Any) -> dict[str, Any]:
    """Applies a chain with random numbers that follow Python's `random`, and so the seed of the process."""
    seed = random.getrandbits(64)
    # one stream for all transforms; seeding each alike would make their draws equal
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return compose(**data)


class AlbumentationsTransform:
    """A training transform for timm's loaders: PIL image in, [C, H, W] uint8 array of the model's input size out.

    What is drawn follows Python's `random`, which the training tools seed for each epoch and loader process; so a
    resumed run draws what an uninterrupted one would. Normalising is left to the loader.

    Args:
        specs: see `build_transforms`. If images of another size come out, they are resized.
        input_size: channels, height and width of the model's input.
        source: where the list comes from, for error messages.

    Raises:
        UserError: a list that cannot be built, or whose result is no 8-bit image of these channels.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]], input_size: Sequence[int], source: str = "augmentation"):
        library = _albumentations()
        channels, height, width = input_size
        transforms = build_transforms(specs, source, (height, width))
        self.compose = build_compose([*transforms, library.Resize(height, width)])
        # the state afterwards is what it was: checking must not change what the run draws
        state = random.getstate()
        try:
            image = draw(self.compose, image=np.zeros((height, width, channels), dtype=np.uint8))["image"]
        except Exception as error:  # each transform has its own way to refuse an image
            raise UserError(f"{source} does not take images of {height}x{width}: {error}") from error
        finally:
            random.setstate(state)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (height, width, channels):
            raise UserError(f"{source} must give 8-bit images of {channels} channels: leave out Normalize, ToTensorV2 "
                            "and the like, the loader does that")

    def __call__(self, image: Image.Image) -> np.ndarray:
        array = np.asarray(image)
        if array.ndim == 2:
            array = array[:, :, None]
        return np.ascontiguousarray(draw(self.compose, image=array)["image"].transpose(2, 0, 1))


def albumentations_from_arguments(args: Namespace, input_size: Sequence[int]) -> AlbumentationsTransform | None:
    """Returns the transform that `--aug` and `--aug-config` ask for, None for timm's own augmentation.

    Raises:
        UserError: flags that contradict each other, or a file that cannot be read or built.
    """
    if args.aug != "albumentations":
        if args.aug_config:
            raise UserError("--aug-config is for --aug albumentations")
        return None
    if not args.aug_config:
        raise UserError("--aug albumentations needs --aug-config FILE, "
                        "such as configs/augmentation/digits.yaml")
    if args.no_aug or args.aa:
        raise UserError(f"--aug albumentations replaces timm's augmentation: leave out "
                        f"{'--no-aug' if args.no_aug else '--aa'}")
    yaml = require("yaml")
    try:
        specs = yaml.safe_load(Path(args.aug_config).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --aug-config {args.aug_config}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--aug-config {args.aug_config} is not valid YAML: {error}") from error
    return AlbumentationsTransform(specs, input_size, f"--aug-config {args.aug_config}")
