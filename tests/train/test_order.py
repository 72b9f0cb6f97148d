"""The order of images and their random numbers: the same wherever an epoch begins and however it is split."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vmamba.data.datasets import UnreadableImageError
from vmamba.data.order import EpochBatches, SeededDataset, SeededLoader, hold_signals, seed_all


class Draws:
    """A dataset whose items are what the three generators give; numbers in `bad` cannot be read."""

    def __init__(self, length, bad=()):
        self.length, self.bad = length, bad

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise UnreadableImageError(f"cannot read image {index}")
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def batches(epoch=0, start=0, **kwargs):
    sampler = EpochBatches(22, kwargs.pop("batch_size", 4), **{"seed": 3, **kwargs})
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


def test_an_epoch_is_a_permutation_without_its_rest():
    epoch = batches()
    assert [len(batch) for batch in epoch] == [4] * 5
    indices = [index for index, _ in chain(*epoch)]
    assert len(set(indices)) == 20
    assert set(indices) < set(range(22))
    seeds = [seed for _, seed in chain(*epoch)]
    assert len(set(seeds)) == 20


def test_epochs_and_seeds_differ():
    orders = [[index for index, _ in chain(*batches(epoch, seed=seed))] for epoch in (0, 1) for seed in (3, 4)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_an_epoch_goes_on_where_it_stopped():
    assert batches(epoch=2, start=3) == batches(epoch=2)[3:]


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_batches_of_one(world_size):
    whole = batches(batch_size=4)
    parts = [batches(batch_size=4 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(chain(*(part[step] for part in parts)))


def test_repeated_augmentation_gives_copies_to_different_processes():
    parts = [batches(batch_size=2, rank=rank, world_size=2, repeats=2) for rank in range(2)]
    for left, right in zip(*parts, strict=True):
        assert [index for index, _ in left] == [index for index, _ in right]
        assert all(a != b for (_, a), (_, b) in zip(left, right, strict=True))


def read(workers, start=0):
    dataset = SeededDataset(Draws(22))
    loader = SeededLoader(DataLoader(dataset, batch_sampler=EpochBatches(22, 4, seed=3), num_workers=workers,
                                     worker_init_fn=hold_signals), seed=3)
    loader.set_position(1, start)
    return [(torch.stack([column.double() for column in batch]), random.random(), np.random.rand(), torch.rand(()))
            for batch in loader]


def test_draws_depend_on_neither_loader_processes_nor_the_beginning():
    whole = read(0)
    assert len({row[1] for row in whole}) == 5
    for other in (read(2), read(0, start=2), read(1, start=2)):
        for left, right in zip(whole[-len(other):], other, strict=True):
            assert torch.equal(left[0], right[0])
            assert left[1:] == right[1:]


def test_seed_all_seeds_every_generator():
    rows = []
    for key in ((1, 2), (1, 3), (1, 2)):
        seed_all(*key)
        rows.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert rows[0] == rows[2]
    assert all(a != b for a, b in zip(rows[0], rows[1], strict=True))


def test_unreadable_images_are_named_counted_and_bounded(capfd):
    dataset = SeededDataset(Draws(6, bad=(2, 3, 5)), max_unreadable=2)
    assert dataset[4, 0][0] == 4
    assert capfd.readouterr().err == ""
    assert dataset[2, 0][0] == 4    # the neighbour's neighbour
    assert capfd.readouterr().err.splitlines() == [
        "warning: cannot read image 2; its neighbour takes its place (1 of at most 2 an epoch)",
        "warning: cannot read image 3; its neighbour takes its place (2 of at most 2 an epoch)"]
    with pytest.raises(UnreadableImageError, match="cannot read image 5; that is one more than --max-unreadable 2"):
        dataset[5, 0]
    SeededLoader(DataLoader(dataset, batch_sampler=EpochBatches(6, 2, seed=0)), 0).set_position(1, 0)
    assert dataset[5, 0][0] == 0


def test_processes_count_together(capfd):
    dataset = SeededDataset(Draws(8, bad=range(8)), max_unreadable=3)
    loader = DataLoader(dataset, batch_sampler=EpochBatches(8, 2, seed=0), num_workers=2)
    with pytest.raises(UnreadableImageError, match="one more than --max-unreadable 3"):
        list(loader)
    lines = capfd.readouterr().err.splitlines()
    assert sorted(line.partition("(")[2] for line in lines) == [f"{n} of at most 3 an epoch)" for n in (1, 2, 3)]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for index in range(12):
            yield index, torch.rand(())


def test_a_reader_that_cannot_seek_reads_up_to_the_beginning():
    def run(start):
        loader = SeededLoader(DataLoader(Stream(), batch_size=2), seed=0)
        loader.set_position(0, start)
        return [(indices.tolist(), random.random()) for indices, _ in loader]

    assert run(4) == run(0)[4:]
