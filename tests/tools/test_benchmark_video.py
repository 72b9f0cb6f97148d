"""benchmark_video through its command line: what a row says, and wrong names."""
import csv

import benchmark_video
import pytest


def test_rows(tmp_path, capsys):
    path = tmp_path / "video.csv"
    assert benchmark_video.main([
        "--model", "test_videomamba", "--frames", "1", "3", "--img-size", "32", "--batch-size", "2", "--bench",
        "inference", "train", "--device", "cpu", "--num-iter", "2", "--num-warm-iter", "1", "--results-file",
        str(path)]) == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frames"], row["bench"], row["img_size"], row["model"]) for row in rows] == [
        (frames, bench, f"{frames}x32x32", "test_videomamba")
        for bench in ("inference", "train") for frames in ("1", "3")]
    for row in rows:
        clips = 2 / float(row["median_ms"]) * 1e3
        assert float(row["frames_per_s"]) == pytest.approx(int(row["frames"]) * clips, rel=1e-2)
        assert float(row["time_ratio"]) > 0
    assert rows[0]["time_ratio"] == "1.000"
    assert "frames_per_s" in capsys.readouterr().out


def test_a_model_that_takes_no_clips_is_refused(capsys):
    assert benchmark_video.main(["--model", "test_vmamba", "--device", "cpu"]) == 2
    assert "cannot build test_vmamba: " in capsys.readouterr().err
