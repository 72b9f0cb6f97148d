"""create_dataset: folders and their mistakes, bundled and unknown names."""

import pytest
from PIL import Image

from vmamba.data import class_names, create_dataset
from vmamba.data.datasets import UnreadableImageError
from vmamba.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for index, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (9, 7), 40 * index).save(tmp_path / split / name / "0.png")
    return tmp_path


def test_folder_gives_images_and_names(folder):
    dataset = create_dataset("", str(folder), "train")
    assert class_names(dataset) == ["ant", "bee"]
    image, label = dataset[1]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (9, 7), (40, 40, 40), 1)


def test_class_map_orders_the_classes(folder):
    dataset = create_dataset("", str(folder), "validation", class_map={"bee": 0, "ant": 1})
    assert class_names(dataset) == ["bee", "ant"]
    assert [label for _, label in dataset] == [1, 0]


def test_class_map_file_chooses_classes(folder):
    (folder / "map.txt").write_text("bee\n")
    dataset = create_dataset("", str(folder), "train", class_map=str(folder / "map.txt"))
    assert (class_names(dataset), len(dataset), dataset[0][1]) == (["bee"], 1, 0)


def test_folder_that_the_class_map_lacks(folder):
    with pytest.raises(UserError, match=r"class folder .*bee is not among the 2 known classes; near names: been"):
        create_dataset("", str(folder), "val", class_map={"ant": 0, "been": 1})


@pytest.mark.parametrize("class_map", [None, {"ant": 0, "bee": 1, "cow": 2}])
def test_empty_class_folder(folder, class_map):
    (folder / "train" / "cow").mkdir()
    with pytest.raises(UserError, match=r"class folder .*cow holds no images"):
        create_dataset("", str(folder), "train", class_map=class_map)


def test_hidden_folders_are_ignored(folder):
    (folder / "train" / ".cache").mkdir()
    assert len(create_dataset("", str(folder), "train")) == 2


def test_images_beside_the_class_folders(folder):
    Image.new("L", (8, 8)).save(folder / "train" / "stray.png")
    with pytest.raises(UserError, match="holds images itself"):
        create_dataset("", str(folder), "train")


def test_unreadable_image_is_named_and_not_replaced(folder):
    path = folder / "train" / "bee" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    dataset = create_dataset("", str(folder), "train")
    dataset[0]
    with pytest.raises(UnreadableImageError, match=rf"^cannot read image {path}: "):
        dataset[1]


def test_message_survives_a_loader_process():
    wrapped = "Caught UnreadableImageError in worker 0.\nOriginal Traceback\n  x\nvmamba.data.datasets." \
              "UnreadableImageError: cannot read image a.png: truncated\n"
    assert str(UnreadableImageError(wrapped)) == "cannot read image a.png: truncated"


def test_torchvision_datasets_have_mode_names_and_errors_too(folder):
    dataset = create_dataset("torch/image_folder", str(folder), "train", input_img_mode="L")
    assert class_names(dataset) == ["ant", "bee"]
    image, label = dataset[1]
    assert (len(dataset), image.mode, image.getpixel((0, 0)), label) == (2, "L", 40, 1)
    path = folder / "train" / "bee" / "0.png"
    path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=f"cannot read image {path}"):
        dataset[1]


@pytest.mark.parametrize(("name", "root", "message"), [
    ("digit", None, "unknown dataset 'digit'.*near names: digits"),
    ("nowhere/x", None, "unknown dataset"),
    ("torch/cifar1000", "DIR", "cannot open dataset torch/cifar1000"),
    ("", "DIR/none", "does not exist"),
    ("", None, "no dataset"),
    ("", "DIR", "Found 0 images"),
])
def test_bad_names_and_folders(name, root, message, tmp_path):
    with pytest.raises(UserError, match=message):
        create_dataset(name, root and root.replace("DIR", str(tmp_path)), "train")
