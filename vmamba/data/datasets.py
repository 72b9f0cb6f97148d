"""One way to every dataset: the bundled ones, image folders, and whatever `timm.data.create_dataset` reads.

What timm lets pass and is almost always a mistake is refused here: an empty class folder, a validation folder with
other classes than the training folder, both splits in the same folder, an image that cannot be read.
"""
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import timm.data
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset

from ..errors import UserError, near_names
from .bundled import BUNDLED, TRAIN_NAMES, VALIDATION_NAMES, BundledDataset
from .cache import ImageCache

__all__ = ["UNREADABLE", "UnreadableImageError", "class_names", "create_dataset", "dataset_errors", "share_out"]

# what PIL raises for files that are no image, truncated or damaged
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")


class UnreadableImageError(UserError):
    """An image of a training or validation set cannot be read."""

    def __init__(self, message: str):
        # raised in a loader's worker process it arrives here wrapped in that process's traceback: keep its own line
        super().__init__(message.strip().rsplit("UnreadableImageError: ", 1)[-1])


class _StrictImageDataset(ImageDataset):
    """timm's `ImageDataset`, but an unreadable image is an error instead of being replaced by its neighbour."""

    cache: ImageCache | None = None

    def _read(self, index: int) -> tuple[Image.Image, int | None]:
        file, target, *_ = self.reader[index]
        with file:
            return Image.open(file).convert(self.input_img_mode), target

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any
        try:
            image, target = self._read(index) if self.cache is None else self.cache.get(index, self._read)
        except UNREADABLE as error:
            name = self.filename(index, absolute=True) or f"number {index}"
            raise UnreadableImageError(f"cannot read image {name}: {error}") from None
        if self.transform is not None:
            image = self.transform(image)
        return image, -1 if target is None else target


class _TorchvisionDataset(Dataset):
    """A torchvision dataset with what timm's other datasets have: one image mode, and a name for a bad image."""

    def __init__(self, dataset: Any, input_img_mode: str):
        self.dataset = dataset
        self.classes = getattr(dataset, "classes", None)
        self.input_img_mode = input_img_mode
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image, target = self.dataset[index]
            image = image.convert(self.input_img_mode)
        except UNREADABLE as error:
            samples = getattr(self.dataset, "samples", None)
            name = samples[index][0] if samples else f"number {index}"
            raise UnreadableImageError(f"cannot read image {name}: {error}") from None
        return image if self.transform is None else self.transform(image), target


@contextmanager
def dataset_errors(what: str) -> Iterator[None]:
    """Turns what timm and its readers raise for a bad dataset into a `UserError` that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error


def _check_source(name: str, root: str | None) -> str:
    """Returns the prefix of a timm name, "" for others; raises a `UserError` if there is no such dataset."""
    prefix = name.partition("/")[0].lower() if "/" in name else ""
    if name and name not in BUNDLED and prefix not in _PREFIXES:
        raise UserError(
            f"unknown dataset {name!r}: known are {', '.join(BUNDLED)} and timm's names with a prefix "
            f"({', '.join(f'{known}/' for known in _PREFIXES)}); leave it out for an image folder"
            + near_names(name, BUNDLED))
    if not name and not root:
        raise UserError("no dataset: give --data-dir FOLDER or --dataset NAME")
    if not name and not Path(root or ".").exists():
        raise UserError(f"data folder {root} does not exist")
    return prefix


def create_dataset(
    name: str = "",
    root: str | None = None,
    split: str = "train",
    *,
    is_training: bool = False,
    class_map: str | dict[str, int] | None = None,
    input_img_mode: str = "RGB",
    cache: str | None = None,
    labelled: bool = True,
    **kwargs: Any,
) -> Dataset:
    """Opens one split of a dataset.

    Args:
        name: a bundled name (`digits`, `mnist5k`), a timm name with its prefix (`torch/cifar10`, `hfds/...`,
            `wds/...`), or "" for an image folder or tar file at `root`.
        root: folder of the dataset. For image folders it holds one folder or one `.tar` file a split, or is the split
            itself.
        split: name of the split.
        is_training: shuffle iterable datasets.
        class_map: for folders. A dict class name -> index must name every folder; a text file with one class
            name a line may choose some of them.
        input_img_mode: PIL mode the images are converted to.
        cache: folder for decoded images, see `ImageCache`.
        labelled: the folders of an image folder are its classes; if not, images may lie anywhere below `root`.
        **kwargs: passed to `timm.data.create_dataset`.

    Raises:
        UserError: unknown name, missing or empty folder, empty class folder, or timm refuses the dataset.
    """
    prefix = _check_source(name, root)
    if cache and name:
        raise UserError("--data-cache is for image folders and tar files")
    if isinstance(class_map, str) and class_map:
        if name in BUNDLED:
            raise UserError(f"--class-map is for datasets of your own: {name} has its classes")
        _check_class_map(class_map, root)
    if name in BUNDLED:
        return BundledDataset(name, split, input_img_mode)
    if not name:
        root = str(_tar_of_split(Path(root or "."), split))
    with dataset_errors(f"cannot open dataset {name or root}, split {split}"):
        dataset: Any = timm.data.create_dataset(
            name, root=root, split=split, is_training=is_training,
            class_map=class_map,  # type: ignore[arg-type]  # a file name too, whatever timm's annotation says
            input_img_mode=input_img_mode, **kwargs,
        )
    if prefix == "torch":
        return _TorchvisionDataset(dataset, input_img_mode)
    if not isinstance(dataset, ImageDataset):
        return dataset
    if not name and labelled:
        _check_folder(dataset.reader, class_map)
    strict = _StrictImageDataset(root, reader=dataset.reader, input_img_mode=input_img_mode)
    strict.cache = ImageCache(cache, strict, input_img_mode) if cache else None
    return strict


class _EveryNth:
    """A reader that gives each n-th image of another: the share of one of n processes."""

    def __init__(self, reader: Any, rank: int, world_size: int):
        self.reader, self.rank, self.world_size = reader, rank, world_size
        # timm's own shares may miss images at their ends, or repeat some
        reader.dist_rank, reader.dist_num_replicas = 0, 1

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.reader), self.rank, None, self.world_size)

    def __len__(self) -> int:
        return -(-len(self.reader) // self.world_size)

    def set_epoch(self, count: int) -> None:
        self.reader.set_epoch(count)

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        self.reader.set_loader_cfg(num_workers=num_workers)


def share_out(dataset: Any, rank: int, world_size: int) -> None:
    """Lets each process evaluate its part of a dataset that can only be read from the beginning, each image once.

    Every process reads all of it.
    """
    dataset.reader = _EveryNth(dataset.reader, rank, world_size)


def _check_class_map(name: str, root: str | None) -> None:
    """Refuses what is no text file with a class name a line; timm looks in the dataset's folder as well."""
    path = Path(name) if Path(name).exists() else Path(root or ".") / name
    if path.suffix.lower() != ".txt":
        raise UserError(f"--class-map {name} must be a text file with one class name a line, and end in .txt")
    try:
        classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --class-map {name}: {getattr(error, 'strerror', None) or error}") from error
    if not classes or "" in classes:
        raise UserError(f"--class-map {name} has an empty line: each line is the name of a class")
    twice = next((label for label in classes if classes.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"--class-map {name} has class {twice} more than once")


def _tar_of_split(root: Path, split: str) -> Path:
    """Returns the tar file of a split in `root`, or `root` if there is none."""
    names = VALIDATION_NAMES if split in VALIDATION_NAMES else TRAIN_NAMES if split in TRAIN_NAMES else (split,)
    return next((root / f"{name}.tar" for name in names if (root / f"{name}.tar").is_file()), root)


def _check_folder(reader: Any, class_map: str | dict[str, int] | None) -> None:
    """Refuses empty class folders, images beside the class folders, and classes the class map does not have."""
    root = Path(reader.root)
    if not root.is_dir():   # a tar file
        return
    if "" in reader.class_to_idx:
        raise UserError(f"{root} holds images itself: put them into one folder a class")
    # with a class map the classes are known without their images, so look where the images are
    populated = {os.path.dirname(sample[0]) for sample in reader.samples}
    for path, folders, _ in os.walk(root, followlinks=True):
        folder = Path(path)
        if folders or folder.name.startswith(".") or folder == root:
            continue
        if folder.name not in reader.class_to_idx and isinstance(class_map, str) and class_map:
            continue    # a class map file may choose some of the classes, as it does in timm
        if class_map and folder.name not in reader.class_to_idx:
            raise UserError(f"class folder {folder} is not among the {len(reader.class_to_idx)} known classes"
                            + near_names(folder.name, reader.class_to_idx))
        if path not in populated:
            raise UserError(f"class folder {folder} holds no images")


def class_names(dataset: Dataset) -> list[str] | None:
    """Returns the class names by index, or None where the dataset does not tell them (iterable readers)."""
    if (classes := getattr(dataset, "classes", None)) is not None:
        return [str(name) for name in classes]
    reader = getattr(dataset, "reader", None)
    # readers of tar files have another name for it
    class_to_idx = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    if not class_to_idx:
        return None
    names = {index: str(name) for name, index in class_to_idx.items()}
    return [names.get(index, str(index)) for index in range(max(names) + 1)]
