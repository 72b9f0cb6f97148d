"""Decoded images on a fast disk or in shared memory, so that each is read and decoded once.

An entry is one image as it came out of the decoder: training with a cache gives the numbers that training without it
gives. Its name follows from name, size and time of the file that the image is in, so a file that is replaced is read
anew. Loader processes, and several runs, may share a folder; nothing is ever removed from it.
"""
import hashlib
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from ..errors import UserError

__all__ = ["ImageCache"]

_HEADER = struct.Struct("<III")      # width, height, CRC-32 of the pixels


class ImageCache:
    """Images of a dataset by their number.

    Args:
        folder: where entries go. A folder in /dev/shm keeps them in memory.
        dataset: an image folder or a tar file, as timm reads it.
        mode: PIL mode of the images.

    Raises:
        UserError: a dataset of another kind.
    """

    def __init__(self, folder: str | Path, dataset: ImageDataset, mode: str):
        self.folder, self.dataset, self.mode = Path(folder), dataset, mode
        self.full = False
        self.reader: Any = dataset.reader
        if not isinstance(self.reader, (ReaderImageFolder, ReaderImageInTar)):
            raise UserError("--data-cache is for image folders and tar files")

    def get(
        self, index: int, read: Callable[[int], tuple[Image.Image, int | None]]
    ) -> tuple[Image.Image, int | None]:
        """Returns an image and its label, by `read` if the cache does not have it; what `read` raises is passed on."""
        path: Path | None = None
        try:
            path = self._path(index)
            content = path.read_bytes()
            width, height, check = _HEADER.unpack_from(content)
            pixels = memoryview(content)[_HEADER.size:]
            if zlib.crc32(pixels) == check:
                return Image.frombytes(self.mode, (width, height), pixels), self._label(index)
        except (FileNotFoundError, struct.error):   # not there, or a power cut ended it early
            pass
        image, label = read(index)
        if path is not None and not self.full:
            self._put(path, image)
        return image, label

    def _path(self, index: int) -> Path:
        """Returns where an image is kept; raises `FileNotFoundError` if its file is gone."""
        name = self.dataset.filename(index, absolute=True)
        file = Path(self.reader.root if isinstance(self.reader, ReaderImageInTar) else name)
        status = file.stat()
        key = f"{file.absolute()}\n{name}\n{status.st_size}\n{status.st_mtime_ns}\n{self.mode}"
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / digest[2:]

    def _label(self, index: int) -> int | None:
        reader = self.reader
        return reader.targets[index] if isinstance(reader, ReaderImageInTar) else reader.samples[index][1]

    def _put(self, path: Path, image: Image.Image) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")   # renamed when whole: others read at the same time
        pixels = image.tobytes()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.writelines((_HEADER.pack(*image.size, zlib.crc32(pixels)), pixels))
            temporary.replace(path)
        except OSError as error:
            self.full = True
            temporary.unlink(missing_ok=True)
            print(f"warning: --data-cache {self.folder} takes no more images: {error.strerror}; what it does not have "
                  "is decoded each time", file=sys.stderr, flush=True)
