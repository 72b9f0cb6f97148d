"""Clips of video files, a folder a class, decoded by PyAV.

PyAV's wheels carry FFmpeg, so nothing has to be installed beside them; torchcodec needs FFmpeg's libraries from the
system, and a release of its own for each of PyTorch's.
"""
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError, require
from .datasets import UnreadableImageError

__all__ = ["VideoClips", "VideoFile", "count_frames", "find_videos", "read_frames", "segment_frames"]

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class VideoFile:
    """A video of a data set.

    Attributes:
        path: the file.
        label: index of its class.
        frames: how many frames it has.
    """

    path: Path
    label: int
    frames: int


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    return UnreadableImageError(f"cannot read video {path}: {error}")


def count_frames(path: Path) -> int:
    """Frames of a video, counted without decoding them, for headers may lie or say nothing.

    Raises:
        UnreadableImageError: the file is no video.
    """
    av = require("av")
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from None


def read_frames(path: Path, wanted: np.ndarray) -> np.ndarray:
    """Decodes frames of a video.

    Args:
        path: the file.
        wanted: numbers of the frames in rising order, repeated ones too.

    Returns:
        [T, H, W, 3] uint8, RGB.

    Raises:
        UnreadableImageError: the file is damaged, or ends before the last of the frames.
    """
    av = require("av")
    found: dict[int, np.ndarray] = {}
    numbers, last = set(wanted.tolist()), int(wanted[-1])
    try:
        with av.open(str(path)) as container:
            # from the beginning: seeking is exact in few formats only
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    found[number] = frame.to_ndarray(format="rgb24")
                if number >= last:
                    break
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise _unreadable(path, error) from None
    if last not in found:
        raise UnreadableImageError(f"video {path} has {number + 1 if found else 0} frames, but frame {last} is needed")
    return np.stack([found[number] for number in wanted.tolist()])


def segment_frames(total: int, count: int, places: np.ndarray | float) -> np.ndarray:
    """Frames one of each of `count` equal parts of a video.

    Wang et al., "Temporal Segment Networks", arXiv:1608.00859; VideoMamba's "sparse" sampling.

    Args:
        total: frames of the video.
        count: frames to take.
        places: where in its part each frame lies, 0 to 1 (exclusive): one place, or [count] of them.

    Returns:
        [count] int64, rising.
    """
    return np.floor((np.arange(count) + places) * total / count).astype(np.int64)


def find_videos(root: str | Path, split: str, frames: int) -> tuple[list[VideoFile], list[str]]:
    """Lists the videos of a split, a folder a class, and the classes by name.

    Files that cannot be read, or have fewer than `frames` frames, are named on stderr and left out.

    Raises:
        UserError: no such folder, or no videos in it.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise UserError(f"{folder} is not there")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    videos, left_out = [], []
    for label, name in enumerate(classes):
        for path in sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in SUFFIXES):
            try:
                found = count_frames(path)
                if found < frames:
                    raise UnreadableImageError(f"video {path} has {found} frames, fewer than the {frames} asked for")
            except UnreadableImageError as error:
                print(f"warning: {error}; it is left out", file=sys.stderr, flush=True)
                left_out.append(str(error))
                continue
            videos.append(VideoFile(path, label, found))
    if not videos:
        reason = f": {left_out[0]}" if left_out else ""
        raise UserError(f"no videos of {frames} frames or more in the class folders of {folder}{reason}")
    return videos, classes


class VideoClips(Dataset):
    """Clips of a split, ready for a model.

    For training a clip [3, T, S, S], whose frames are drawn one of each part of the video, cropped and mirrored alike
    by torchvision. For evaluation all views [clips * crops, 3, T, S, S]: clips lie beside each other inside the parts;
    crops along the longer side.

    Args:
        root: folder of the data set.
        split: folder of the split in it.
        frames: frames T of a clip.
        size: side S of the frames, pixels.
        train: draw clips for training.
        hflip: probability of a mirrored clip; 0 where left and right are classes.
        clips: clips of a video in evaluation.
        crops: crops of a clip in evaluation: 1, or 3 for both ends and the middle.

    Raises:
        UserError: see `find_videos`.
    """

    def __init__(
        self, root: str | Path, split: str, *, frames: int, size: int, train: bool, hflip: float = 0.5, clips: int = 1,
        crops: int = 1,
    ):
        self.videos, self.classes = find_videos(root, split, frames)
        self.frames, self.size, self.train, self.clips, self.crops = frames, size, train, clips, crops
        v2 = require("torchvision.transforms.v2")
        self.resize = v2.Resize(size, antialias=True)
        self.augment = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.5, 1.0), antialias=True), v2.RandomHorizontalFlip(hflip)])

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        video = self.videos[index]
        if self.train:
            places: Any = torch.rand(self.frames, dtype=torch.float64).numpy()
            frames = read_frames(video.path, segment_frames(video.frames, self.frames, places))
            return _normalise(self.augment(_channels_first(frames))), video.label
        places = (np.arange(self.clips) + 0.5) / self.clips
        numbers = np.stack([segment_frames(video.frames, self.frames, place) for place in places])
        unique, positions = np.unique(numbers, return_inverse=True)
        decoded = self.resize(_channels_first(read_frames(video.path, unique)))
        views = [
            _normalise(crop) for clip in positions.reshape(numbers.shape) for crop in self._crop(decoded[clip])]
        return torch.stack(views), video.label

    def _crop(self, clip: Tensor) -> list[Tensor]:
        """Square crops [T, 3, S, S] along the longer side of a clip [T, 3, H, W]."""
        spare = [length - self.size for length in clip.shape[2:]]
        parts = (0.5,) if self.crops == 1 else (0.0, 0.5, 1.0)
        return [
            clip[:, :, round(part * spare[0]):, round(part * spare[1]):][:, :, :self.size, :self.size]
            for part in parts]


def _channels_first(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _normalise(clip: Tensor) -> Tensor:
    """Frames [T, 3, H, W] uint8 -> [3, T, H, W] float32 by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (clip.transpose(0, 1).float() / 255 - mean) / std
