"""Augmentation by albumentations or torchvision, described by a list of transforms, for `tools/train.py --aug`.

A YAML file holds the list; each entry names a class of albumentations, or of `torchvision.transforms.v2`, as `type` and
gives its arguments:

    - {type: RandomResizedCrop, size: input_size, scale: [0.7, 1.0]}
    - type: OneOf
      p: 0.3
      transforms:
        - {type: GaussianBlur, blur_limit: [3, 5]}
        - {type: GaussNoise, std_range: [0.02, 0.1]}

`input_size` stands for the height and width of the model's input. What the libraries only warn of, such as an
argument that a transform does not have, is an error here. A list can name nothing but transforms: no function of a
library, and no file.
"""
import inspect
import os
import random
import re
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, near_names, require

__all__ = ["AlbumentationsTransform", "TorchvisionTransform", "build_compose", "build_transforms", "draw",
           "read_transforms", "transform_from_arguments"]

_INPUT_SIZE = "input_size"


@dataclass(frozen=True)
class _Library:
    """What a list can name: a title for error messages, and the transforms by name."""

    title: str
    known: dict[str, type]


def _albumentations() -> ModuleType:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")     # or importing it asks the network for a newer version
    return require("albumentations")


def _classes_of(module: ModuleType, *kinds: type) -> dict[str, type]:
    found = {name: value for name, value in vars(module).items()
             if inspect.isclass(value) and issubclass(value, kinds) and not inspect.isabstract(value)}
    found.pop("Lambda", None)   # takes functions, which YAML does not have
    return found


@cache
def _of_albumentations() -> _Library:
    library = _albumentations()
    return _Library(f"albumentations {library.__version__}",
                    _classes_of(library, library.BasicTransform, library.BaseCompose))


@cache
def _of_torchvision() -> _Library:
    v2 = require("torchvision.transforms.v2")
    return _Library(f"torchvision {require('torchvision').__version__}", _classes_of(v2, v2.Transform))


def build_transforms(
    specs: Sequence[Mapping[str, Any]], source: str, input_size: tuple[int, int] | None = None,
    library: _Library | None = None,
) -> list[Any]:
    """Builds the transforms of a list.

    Args:
        specs: for each transform a mapping with its class name as `type`, and its arguments. Those that hold others
            (`OneOf`, `RandomApply`, ...) have a list of the same kind as `transforms`.
        source: where the list comes from, for error messages.
        input_size: height and width that the argument value "input_size" stands for.
        library: whose transforms; None: albumentations'.

    Raises:
        UserError: not such a list, an unknown transform, or arguments that it does not take.
    """
    if not isinstance(specs, Sequence) or isinstance(specs, str) or not specs:
        raise UserError(f"{source} must hold a list of transforms, such as - {{type: HorizontalFlip, p: 0.5}}")
    return [_build(spec, source, input_size, library or _of_albumentations()) for spec in specs]


def _build(spec: Any, source: str, input_size: tuple[int, int] | None, library: _Library) -> Any:
    """Builds one transform, and those inside it."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("type"), str):
        raise UserError(f"{source}: a transform is written as {{type: NAME, argument: value}}, not {spec!r}")
    name = spec["type"]
    if name not in library.known:
        raise UserError(f"{source}: {library.title} has no transform {name!r}" + near_names(name, library.known))
    arguments = {key: value for key, value in spec.items() if key != "type"}
    if "transforms" in arguments:
        arguments["transforms"] = build_transforms(arguments["transforms"], f"{source}: {name}", input_size, library)
    if input_size is not None:
        arguments = {key: input_size if isinstance(value, str) and value == _INPUT_SIZE else value
                     for key, value in arguments.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return library.known[name](**arguments)
        except (KeyError, TypeError, ValueError, UserWarning) as error:
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


class _ListTransform:
    """A training transform for timm's loaders: PIL image in, [C, H, W] uint8 array of the model's input size out.

    What is drawn follows generators that the training tools seed for each image; so a resumed run draws what an
    uninterrupted one would. Normalising is left to the loader.

    Args:
        specs: see `build_transforms`. If images of another size come out, they are resized.
        input_size: channels, height and width of the model's input.
        source: where the list comes from, for error messages.

    Raises:
        UserError: a list that cannot be built, or whose result is no 8-bit image of these channels.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]], input_size: Sequence[int], source: str = "augmentation"):
        channels, height, width = input_size
        self.compose = self._compose(specs, source, (height, width))
        # the states afterwards are what they were: checking must not change what the run draws
        states = random.getstate(), torch.get_rng_state()
        try:
            array = self(Image.new("L" if channels == 1 else "RGB", (width, height)))
        except Exception as error:  # each transform has its own way to refuse an image
            raise UserError(f"{source} does not take images of {height}x{width}: {error}") from error
        finally:
            random.setstate(states[0])
            torch.set_rng_state(states[1])
        if array.dtype != np.uint8 or array.shape != (channels, height, width):
            raise UserError(f"{source} must give 8-bit images of {channels} channels: leave out Normalize, tensors and "
                            "the like, the loader does that")

    def _compose(self, specs: Sequence[Mapping[str, Any]], source: str, size: tuple[int, int]) -> Any:
        raise NotImplementedError

    def __call__(self, image: Image.Image) -> np.ndarray:
        raise NotImplementedError


class AlbumentationsTransform(_ListTransform):
    """Augmentation by albumentations, drawn by Python's `random`; see `_ListTransform`."""

    def _compose(self, specs: Sequence[Mapping[str, Any]], source: str, size: tuple[int, int]) -> Any:
        return build_compose([*build_transforms(specs, source, size), _albumentations().Resize(*size)])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """PIL image -> [C, H, W] uint8."""
        array = np.array(image)     # a copy: some transforms write
        if array.ndim == 2:
            array = array[:, :, None]
        return np.ascontiguousarray(np.moveaxis(draw(self.compose, image=array)["image"], -1, 0))


class TorchvisionTransform(_ListTransform):
    """Augmentation by `torchvision.transforms.v2`, drawn by PyTorch's generator; see `_ListTransform`."""

    def _compose(self, specs: Sequence[Mapping[str, Any]], source: str, size: tuple[int, int]) -> Any:
        v2 = require("torchvision.transforms.v2")
        return v2.Compose([*build_transforms(specs, source, size, _of_torchvision()), v2.Resize(size, antialias=True)])

    def __call__(self, image: Image.Image) -> np.ndarray:
        """PIL image -> [C, H, W] uint8."""
        result = self.compose(image)
        array = result.numpy() if isinstance(result, torch.Tensor) else np.moveaxis(np.atleast_3d(result), -1, 0)
        return np.ascontiguousarray(array)


_LISTS = {"albumentations": AlbumentationsTransform, "torchvision": TorchvisionTransform}


def transform_from_arguments(args: Namespace, input_size: Sequence[int]) -> _ListTransform | None:
    """Returns the transform that `--aug` and `--aug-config` ask for, None for timm's own augmentation.

    Raises:
        UserError: flags that contradict each other, or a file that cannot be read or built.
    """
    if args.aug not in _LISTS:
        if args.aug_config:
            raise UserError("--aug-config is for --aug albumentations and --aug torchvision")
        return None
    if args.aug_config is None:
        raise UserError(f"--aug {args.aug} needs --aug-config FILE, such as those in configs/augmentation")
    if args.no_aug or args.aa:
        raise UserError(f"--aug {args.aug} replaces timm's augmentation: leave out "
                        f"{'--no-aug' if args.no_aug else '--aa'}")
    return _LISTS[args.aug](args.aug_config, input_size, "--aug-config")


def read_transforms(path: str) -> Any:
    """Reads the YAML file of `--aug-config`; what is in it `build_transforms` checks.

    Raises:
        UserError: the file cannot be read.
    """
    yaml = require("yaml")
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --aug-config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--aug-config {path} is not valid YAML: {error}") from error
