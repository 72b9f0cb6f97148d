"""Augmentation by albumentations: what comes out, where its random numbers come from, and bad lists."""
import os
import random
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vmamba.data.augmentation import (
    AlbumentationsTransform,
    TorchvisionTransform,
    read_transforms,
    transform_from_arguments,
)
from vmamba.errors import UserError

FLIP = {"type": "HorizontalFlip", "p": 1.0}


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_output_is_what_the_loader_takes(image):
    out = AlbumentationsTransform([FLIP], (3, 20, 30))(image)
    assert (out.shape, out.dtype) == ((3, 20, 30), np.uint8)
    assert np.array_equal(out, np.asarray(image)[:, ::-1].transpose(2, 0, 1))


def test_other_sizes_are_resized_and_input_size_is_filled_in(image):
    assert AlbumentationsTransform([FLIP], (3, 8, 12))(image).shape == (3, 8, 12)
    transform = AlbumentationsTransform([{"type": "CenterCrop", "pad_if_needed": True, "height": 16, "width": 16},
                                         {"type": "RandomResizedCrop", "size": "input_size"}], (3, 8, 12))
    assert list(transform.compose.transforms[1].size) == [8, 12]


def test_one_channel(image):
    out = AlbumentationsTransform([FLIP], (1, 20, 30))(image.convert("L"))
    assert np.array_equal(out[0], np.asarray(image.convert("L"))[:, ::-1])


def test_draws_follow_the_seed_of_python(image):
    transform = AlbumentationsTransform([{"type": "Affine", "rotate": [-45, 45], "p": 1.0}], (3, 20, 30))

    def draw(seed):
        random.seed(seed)
        return [transform(image).tobytes() for _ in range(3)]

    first = draw(1)
    assert len(set(first)) == 3
    assert first == draw(1)
    assert first != draw(2)


def test_building_draws_nothing():
    random.seed(3)
    state = random.getstate()
    AlbumentationsTransform([FLIP], (3, 20, 30))
    assert random.getstate() == state


def test_transforms_draw_independently(image):
    """Two flips with probability a half: seeded alike, they would always undo each other."""
    flips = [{"type": "HorizontalFlip", "p": 0.5}, {"type": "HorizontalFlip", "p": 0.5}]
    transform = AlbumentationsTransform(flips, (3, 20, 30))
    assert len({transform(image).tobytes() for _ in range(30)}) == 2


@pytest.mark.parametrize(("specs", "message"), [
    ({"type": "HorizontalFlip"}, "must hold a list of transforms"),
    ([], "must hold a list of transforms"),
    (["HorizontalFlip"], "a transform is written as {type: NAME, argument: value}, not 'HorizontalFlip'"),
    ([{"p": 1}], "a transform is written as"),
    ([{"type": "HorizontalFlop"}], "has no transform 'HorizontalFlop'; near names: HorizontalFlip"),
    ([{"type": "load"}], "has no transform 'load'"),
    ([{**FLIP, "probability": 1}], "x: HorizontalFlip: .*probability"),
    ([{**FLIP, "p": 2}], "x: HorizontalFlip: .*p"),
    ([{"type": "OneOf", "transforms": [{"type": "Blurr"}]}], "x: OneOf: .*no transform 'Blurr'; near names: Blur"),
    ([{"type": "OneOf", "transforms": []}], "x: OneOf must hold a list of transforms"),
    ([{"type": "RandomCrop", "height": 99, "width": 99}], "x does not take images of 20x30"),
    ([{"type": "Normalize"}], "must give 8-bit images of 3 channels"),
    ([{"type": "ToTensorV2"}], "8-bit images|does not take images"),
])
def test_bad_list(specs, message):
    with pytest.raises(UserError, match=message) as caught:
        AlbumentationsTransform(specs, (3, 20, 30), "x")
    assert "\n" not in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


@pytest.mark.parametrize(("flags", "message"), [
    ({"aug_config": None}, "needs --aug-config FILE"),
    ({"aug": "timm"}, "--aug-config is for --aug albumentations and --aug torchvision"),
    ({"aug": "torchvision", "text": "- {type: HorizontalFlip}"}, "has no transform 'HorizontalFlip'; near names: "),
    ({"no_aug": True}, "leave out --no-aug"),
    ({"aa": "rand-m9"}, "leave out --aa"),
    ({"aug_config": "/nonexistent.yaml"}, "cannot read --aug-config /nonexistent.yaml: No such file"),
    ({"text": "- [}"}, "is not valid YAML"),
    ({"text": "type: HorizontalFlip"}, "must hold a list"),
])
def test_bad_flags(flags, message, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(flags.pop("text", "- {type: HorizontalFlip}"))
    args = Namespace(**{"aug": "albumentations", "aug_config": str(path), "no_aug": False, "aa": None, **flags})

    def build():
        args.aug_config = args.aug_config and read_transforms(args.aug_config)
        transform_from_arguments(args, (3, 20, 30))

    with pytest.raises(UserError, match=message):
        build()


def test_timm_is_the_default():
    assert transform_from_arguments(Namespace(aug="timm", aug_config=None), (3, 20, 30)) is None


class TestTorchvision:
    """The same promises, kept by torchvision.transforms.v2."""

    def test_output_is_what_the_loader_takes(self, image):
        flip = {"type": "RandomHorizontalFlip", "p": 1.0}
        out = TorchvisionTransform([flip], (3, 20, 30))(image)
        assert np.array_equal(out, np.asarray(image)[:, ::-1].transpose(2, 0, 1))
        assert np.array_equal(TorchvisionTransform([flip, {"type": "ToImage"}], (3, 20, 30))(image), out)
        assert TorchvisionTransform([flip], (3, 8, 12))(image).shape == (3, 8, 12)
        assert TorchvisionTransform([flip], (1, 20, 30))(image.convert("L")).shape == (1, 20, 30)

    def test_draws_follow_the_seed_of_pytorch(self, image):
        specs = [{"type": "RandomApply", "p": 1.0, "transforms": [{"type": "RandomAffine", "degrees": 45}]}]
        transform = TorchvisionTransform(specs, (3, 20, 30))

        def draw(seed):
            torch.manual_seed(seed)
            return [transform(image).tobytes() for _ in range(3)]

        first = draw(1)
        assert len(set(first)) == 3
        assert first == draw(1)
        assert first != draw(2)

    def test_building_draws_nothing(self):
        state = torch.get_rng_state()
        TorchvisionTransform([{"type": "RandomAffine", "degrees": 9}], (3, 20, 30))
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(("specs", "message"), [
        ([{"type": "RandomAfine", "degrees": 1}], "torchvision .* no transform 'RandomAfine'; near names: RandomAff"),
        ([{"type": "functional"}], "has no transform 'functional'"),
        ([{"type": "RandomAffine", "angle": 1}], "x: RandomAffine: .*angle"),
        ([{"type": "RandomHorizontalFlip", "p": 2}], "x: RandomHorizontalFlip: "),
        ([{"type": "RandomApply", "transforms": [{"type": "Lambda"}]}], "x: RandomApply: .* no transform 'Lambda'"),
        ([{"type": "RandomApply", "transforms": []}], "x: RandomApply must hold a list of transforms"),
        ([{"type": "ToImage"}, {"type": "ToDtype", "dtype": "float"}], "x"),
        ([{"type": "CutMix", "num_classes": 3}], "x does not take images of 20x30"),
    ])
    def test_bad_list(self, specs, message):
        with pytest.raises(UserError, match=message) as caught:
            TorchvisionTransform(specs, (3, 20, 30), "x")
        assert "\n" not in str(caught.value)


def test_no_version_check_over_the_network():
    """In a fresh process: whoever imports albumentations through this package opens no connection."""
    code = ("import socket\n"
            "def refuse(*a): raise SystemExit('opened a connection')\n"
            "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
            "from vmamba.data.augmentation import AlbumentationsTransform\n"
            "AlbumentationsTransform([{'type': 'HorizontalFlip'}], (3, 8, 8))\n")
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


LISTS = Path(__file__).resolve().parents[2] / "configs" / "augmentation"


@pytest.mark.parametrize("path", sorted(LISTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_lists_can_be_built(path, image):
    kind = TorchvisionTransform if path.stem.endswith("torchvision") else AlbumentationsTransform
    assert kind(read_transforms(str(path)), (3, 20, 30))(image).shape == (3, 20, 30)
