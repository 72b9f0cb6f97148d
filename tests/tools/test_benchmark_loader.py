"""tools/benchmark_loader.py. No test looks at how long anything took."""

import csv

import benchmark_loader


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
    assert "| workers |" in capsys.readouterr().out.replace("  ", " ")


def test_bad_options_of_training(capsys):
    assert benchmark_loader.main(["--", "--data-dir", "/nonexistent", "--model", "test_vmamba"]) == 2
    assert capsys.readouterr().err == "error: data folder /nonexistent does not exist\n"
