"""The order of the training images and the random numbers each is drawn with, as functions of seed, epoch and place.

Nothing here keeps a state: an epoch can begin at any batch, with any number of loader processes, and split over any
number of training processes, and every image is the same, augmented the same. So there is no generator whose state
a checkpoint would have to hold.
"""
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from multiprocessing import Value
from typing import Any

import numpy as np
import torch
from timm.utils import random_seed
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from .datasets import UnreadableImageError

__all__ = ["EpochBatches", "SeededDataset", "SeededLoader", "hold_signals", "seed_all"]


def seed_all(*key: int) -> None:
    """Seeds Python, NumPy and PyTorch with a number that all of `key` (each 0 or more) goes into."""
    random_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one process in one epoch: lists of (image index, seed of its augmentation).

    The images of an epoch stand in one row, shuffled. Step after step all processes together take `batch_size *
    world_size` of them, and deal them out in turn. What is left at the end, less than that, is not used.

    Args:
        length: images of the dataset.
        batch_size: images a batch and process.
        seed: seed of the run.
        rank: number of this process.
        world_size: number of processes.
        repeats: times each image stands in the row, one after the other and each augmented in its own way; the row
            stays as long ("repeated augmentation", Hoffer et al. 2020, arXiv:1901.09335).

    Attributes:
        epoch: which epoch the next iteration is.
        start: with which batch it begins.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1,
                 repeats: int = 1):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        if self.repeats > 1:
            order = order.repeat(self.repeats)[:self.length]
        seeds = np.random.SeedSequence([self.seed, self.epoch]).generate_state(self.length)
        step = self.batch_size * self.world_size
        for first in range(self.start * step, len(self) * step, step):
            mine = slice(first + self.rank, first + step, self.world_size)
            yield list(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True))


class SeededDataset(Dataset):
    """Reads images by (index, seed): the seed decides how the image is augmented.

    Args:
        dataset: map-style dataset.
        max_unreadable: images an epoch that may be unreadable. Each is named on stderr, and its neighbour takes its
            place.

    Raises:
        UnreadableImageError: by reading, an image is one too many.
    """

    def __init__(self, dataset: Any, max_unreadable: int = 0):
        self.dataset = dataset
        self.max_unreadable = max_unreadable
        self.unreadable: Any = Value("i", 0)    # shared with the loader processes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        index, seed = place
        while True:
            # the generators of the CPU only: images are augmented there
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            try:
                return self.dataset[index]
            except UnreadableImageError as error:
                self._count(error)
                index = (index + 1) % len(self.dataset)

    def _count(self, error: UnreadableImageError) -> None:
        with self.unreadable.get_lock():
            self.unreadable.value += 1
            count = self.unreadable.value
        if not self.max_unreadable:
            raise error
        if count > self.max_unreadable:
            raise UnreadableImageError(f"{error}; that is one more than --max-unreadable {self.max_unreadable} allows")
        print(f"warning: {error}; its neighbour takes its place ({count} of at most {self.max_unreadable} an epoch)",
              file=sys.stderr, flush=True)


class SeededLoader:
    """A training loader that can begin anywhere, and seeds this process before it hands a batch on.

    timm's prefetching loader, which wraps it, draws the random erasing of that batch then.

    Args:
        loader: of a `SeededDataset` by `EpochBatches`, or of an iterable dataset, whose batches before the beginning
            are read and dropped.
        seed: seed of the run.
        rank: number of this process.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int = 0):
        self.loader, self.seed, self.rank = loader, seed, rank
        self.epoch = self.start = 0

    def set_position(self, epoch: int, start: int) -> None:
        """Lets the next iteration be that of `epoch`, from its batch number `start` on."""
        self.epoch, self.start = epoch, start
        if isinstance(self.loader.batch_sampler, EpochBatches):
            self.loader.batch_sampler.epoch, self.loader.batch_sampler.start = epoch, start
        dataset: Any = self.loader.dataset
        if isinstance(dataset, SeededDataset):
            dataset.unreadable.value = 0
        elif hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # an iterable dataset's processes are seeded from this process
        seed_all(self.seed, self.epoch, self.rank)
        skipped = 0 if isinstance(self.loader.batch_sampler, EpochBatches) else self.start
        batches = iter(self.loader)
        if self.loader.num_workers and threading.current_thread() is threading.main_thread():
            # PyTorch's handler raises for a dead loader process wherever this one is, in the middle of a step of the
            # optimiser for example. Without it the error comes out of the iterator, where the run can still be saved
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, batch in enumerate(islice(batches, skipped, None), self.start):
            seed_all(self.seed, self.epoch, self.rank, number)
            yield batch

    @property
    def dataset(self) -> Any:
        """The dataset, for timm's wrapper."""
        return self.loader.dataset

    @property
    def collate_fn(self) -> Any:
        """What makes a batch of images, for timm's wrapper, which switches Mixup off there."""
        return self.loader.collate_fn


def hold_signals(worker: int) -> None:
    """Lets a loader process outlive the signals that ask the whole run to stop: the main process ends it.

    Terminals and batch systems send them to every process, and a loader that dies first takes the run with it before
    it has saved. The second SIGTERM ends the process: that is how a loader that is stuck is got rid of.
    """
    info = get_worker_info()
    if info is not None:    # as timm's loaders do
        np.random.seed(info.seed % (2**32 - 1))
    asked: list[int] = []

    def terminate(number: int, frame: Any) -> None:
        if asked:
            os._exit(128 + number)
        asked.append(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
