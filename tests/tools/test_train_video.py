"""train_video through its command line, on real clips played forwards and backwards."""
import csv
from pathlib import Path

import pytest

from tests.support.videos import write_playback
from vmamba.data.datasets import UnreadableImageError
from vmamba.tasks import video
from vmamba.tasks.loop import read_options


@pytest.fixture(scope="module")
def playback(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_playback(root, "train", (0, 20, 40))
    return write_playback(root, "val", (70,))


def flags(data, output, *more):
    return ["--data-dir", str(data), "--model", "test_videomamba", "--frames", "4", "--size", "32", "--hflip", "0",
            "--epochs", "1", "-b", "2", "--workers", "0", "--device", "cpu", "--output", str(output), "--experiment",
            "run", *more]


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "video").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_read(path):
    args, _ = read_options(video._parser(), ["--config", str(path), "--data-dir", "DIR", "--device", "cpu"])
    model = video._build({
        "model": args.model, "model_args": args.model_kwargs, "classes": ["a"], "frames": args.frames,
        "size": args.size})
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


def test_trains_and_evaluates(playback, tmp_path, capsys):
    assert video.main(flags(playback, tmp_path, "--clips", "2", "--crops", "3")) == 0
    out = capsys.readouterr().out
    assert "6 training and 2 validation videos of 2 classes" in out
    with open(tmp_path / "run" / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["top5"] == "1.0"
    weights = str(tmp_path / "run" / "model_best.safetensors")
    assert video.main(flags(playback, tmp_path, "--clips", "2", "--crops", "3", "--evaluate", weights)) == 0
    assert f"top1 {100 * float(row['top1']):.2f} %" in capsys.readouterr().out
    (playback / "val" / "sideways").mkdir()
    try:
        assert video.main(flags(playback, tmp_path, "--evaluate", weights)) == 2
        assert "knows the classes backwards, forwards, but the folder has" in capsys.readouterr().err
    finally:
        (playback / "val" / "sideways").rmdir()


@pytest.mark.parametrize(("more", "message"), [
    (["--model", "videomamba_tny"], "unknown model 'videomamba_tny'; near names: videomamba_tiny"),
    (["--model", "resnet18"], "cannot build resnet18 for clips: "),
    (["--frames", "13"], "no videos of 13 frames or more in the class folders of"),
    (["--data-dir", "nowhere"], "nowhere/val is not there"),
    (["--train-split", "val", "-b", "3"], "the training set has 2 samples, fewer than one batch of 3"),
])
def test_bad_options_are_explained(playback, tmp_path, more, message, capsys):
    assert video.main(flags(playback, tmp_path, *more)) == 2
    assert message in capsys.readouterr().err


def test_videos_that_turn_out_damaged_are_named_and_replaced(playback, tmp_path, monkeypatch, capsys):
    """The header is fine, decoding fails: an error, or a warning where some are allowed."""
    read = video.VideoClips.__getitem__

    def damaged(self, index):
        if self.train and index == 1:
            raise UnreadableImageError(f"cannot read video {self.videos[index].path}: damaged")
        return read(self, index)

    monkeypatch.setattr(video.VideoClips, "__getitem__", damaged)
    assert video.main(flags(playback, tmp_path)) == 2
    assert "cannot read video" in capsys.readouterr().err
    assert video.main(flags(playback, tmp_path, "--experiment", "other", "--max-unreadable", "1")) == 0
    assert "its neighbour takes its place" in capsys.readouterr().err
