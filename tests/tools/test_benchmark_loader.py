"""tools/benchmark_loader.py. No test looks at how long anything took."""

import csv

import benchmark
import benchmark_loader
from PIL import Image


def test_rows_of_every_number_of_processes(image_folder, tmp_path, capsys):
    own = ["--num-workers", "0", "1", "--num-batches", "5", "--results-file", str(tmp_path / "l.csv")]
    flags = [*own, "--", "--model",
             "test_vmamba", "--data-dir", str(image_folder), "--img-size", "32", "-b", "16", "--mixup", "0.2"]
    assert benchmark_loader.main(flags) == 0
    with open(tmp_path / "l.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["workers"], row["batch_size"], row["img_size"], row["batches"]) for row in rows] == [
        ("0", "16", "32", "5"), ("1", "16", "32", "5")]
    assert all(float(row["images_per_second"]) > 0 and row["device"] for row in rows)
    assert [row["images_per_cpu_second"] != "" for row in rows] == [True, False]    # others read for this process
    assert "| workers |" in capsys.readouterr().out.replace("  ", " ")


def test_photographs_are_of_imagenets_size(tmp_path):
    benchmark_loader.write_photographs(tmp_path, 5)
    paths = sorted((tmp_path / "train").rglob("*.jpg"))
    assert [path.parent.name for path in paths] == ["astronaut", "astronaut", "chelsea", "coffee", "rocket"]
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_bad_options_of_training(capsys):
    assert benchmark_loader.main(["--", "--data-dir", "/nonexistent", "--model", "test_vmamba"]) == 2
    assert capsys.readouterr().err == "error: data folder /nonexistent does not exist\n"


def test_flag_of_the_benchmark(image_folder, tmp_path, capsys):
    """`tools/benchmark.py --loader`, also with images that are kept decoded."""
    flags = ["--loader", "--num-workers", "0", "--num-batches", "2", "--", "--model", "test_vmamba", "--data-dir",
             str(image_folder), "--img-size", "32", "-b", "16", "--data-cache", str(tmp_path / "cache")]
    assert benchmark.main(flags) == 0
    assert "| images_per_second |" in capsys.readouterr().out
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 48
