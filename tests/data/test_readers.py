"""What timm's readers give: webdataset and Hugging Face datasets, made here, and the shares of several processes."""
from collections import Counter

import pytest
from support.shards import write_shards

from vmamba.data import BundledDataset, class_names, create_dataset, share_out


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A webdataset of 17 validation images in 3 shards of different lengths, labels 0 to 16."""
    root = tmp_path_factory.mktemp("wds")
    write_shards(root, {"validation": [9, 2, 6]})
    return root


def test_webdataset(shards):
    dataset = create_dataset("wds/digits", str(shards), "validation")
    digits = BundledDataset("digits", "validation")
    found = {label: image for image, label in dataset}
    assert sorted(found) == list(range(17))
    assert all(found[label].tobytes() == digits[label][0].tobytes() for label in found)


@pytest.mark.parametrize("world_size", [2, 3, 20])
@pytest.mark.parametrize("loader_processes", [1, 2])
def test_processes_share_a_webdataset_out_without_loss_or_repetition(shards, world_size, loader_processes):
    """Also more processes than images; each loader process reads its own shards, as in a `DataLoader`."""
    counts = Counter()
    for rank in range(world_size):
        share = []
        for loader_process in range(loader_processes):
            dataset = create_dataset("wds/digits", str(shards), "validation")
            share_out(dataset, rank, world_size)
            dataset.set_loader_cfg(num_workers=loader_processes)
            dataset.reader.reader.worker_id = loader_process
            dataset.reader.reader.worker_info = "set"       # timm asks PyTorch otherwise
            dataset.reader.reader.global_worker_id = loader_process
            share += [label for _, label in dataset]
        assert len(share) <= 17 // world_size + loader_processes
        counts.update(share)
    assert counts == Counter(range(17))


def test_hugging_face_datasets(tmp_path):
    """A local folder, which the library reads without asking its hub."""
    digits = BundledDataset("digits", "validation")
    for name, number in (("ant", 0), ("bee", 1), ("bee", 2)):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        digits[number][0].save(tmp_path / "data" / name / f"{number}.png")
    dataset = create_dataset(f"hfds/{tmp_path / 'data'}", str(tmp_path / "cache"), "train")
    assert class_names(dataset) == ["ant", "bee"]
    plain = create_dataset("", str(tmp_path / "data"), "train")
    assert [(image.tobytes(), label) for image, label in dataset] == [
        (image.tobytes(), label) for image, label in plain]
