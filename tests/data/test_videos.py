"""Clips of real videos: which frames are read, what becomes of them, and files that are no good."""
import random

import numpy as np
import pytest
import torch

from tests.support.videos import BIKES, CARPHONE, CLIPS, carphone, write_playback, write_video
from vmamba.data.datasets import UnreadableImageError
from vmamba.data.videos import VideoClips, count_frames, find_videos, read_frames, segment_frames
from vmamba.errors import UserError


def test_frames_are_counted():
    assert {path.name: count_frames(path) for path in sorted(CLIPS.glob("*.mp4"))} == {
        "bigbuckbunny.mp4": 132, "bikes.mp4": 250, "carphone_distorted.mp4": 120, "carphone_pristine.mp4": 120}


def test_the_frames_asked_for_are_read():
    frames = read_frames(CARPHONE, np.array([0, 7, 7, 50]))
    assert frames.shape == (4, 144, 176, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, carphone()[[0, 7, 7, 50]])
    assert not np.array_equal(frames[0], frames[3])


def test_segments():
    assert segment_frames(100, 4, 0.5).tolist() == [12, 37, 62, 87]
    assert segment_frames(100, 4, np.array([0.0, 0.999, 0.5, 0.0])).tolist() == [0, 49, 62, 75]
    assert segment_frames(4, 4, 0.99).tolist() == [0, 1, 2, 3]


def test_bad_files_are_named_and_left_out(tmp_path, capsys):
    write_playback(tmp_path, "train", [0])
    write_video(tmp_path / "train" / "forwards" / "short.mp4", carphone()[:3, :32, :32])
    (tmp_path / "train" / "backwards" / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "train" / "backwards" / "notes.txt").write_text("not looked at")
    videos, classes = find_videos(tmp_path, "train", 8)
    assert classes == ["backwards", "forwards"]
    found = [(video.path.name, video.label, video.frames) for video in videos]
    assert found == [("000.mp4", 0, 12), ("000.mp4", 1, 12)]
    broken, short = capsys.readouterr().err.splitlines()
    assert "cannot read video" in broken
    assert "broken.mp4" in broken
    assert "short.mp4 has 3 frames, fewer than the 8 asked for; it is left out" in short
    with pytest.raises(UserError, match=r"no .* of 99 .*: video .*000\.mp4 has 12 frames, fewer than the 99 asked for"):
        find_videos(tmp_path, "train", 99)
    with pytest.raises(UserError, match="val is not there"):
        find_videos(tmp_path, "val", 8)


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"carphone_pristine\.mp4 has 120 frames, but frame 120 is needed"):
        read_frames(CARPHONE, np.array([3, 120]))
    path = tmp_path / "empty.mp4"
    path.write_bytes(b"")
    for read in (count_frames, lambda p: read_frames(p, np.array([0]))):
        with pytest.raises(UnreadableImageError, match=r"cannot read video .*empty\.mp4"):
            read(path)


@pytest.fixture(scope="module")
def bikes(tmp_path_factory):
    """A data set of one real video of 640 x 272."""
    folder = tmp_path_factory.mktemp("data") / "val" / "ride"
    folder.mkdir(parents=True)
    (folder / "bikes.mp4").symlink_to(BIKES)
    return folder.parents[1]


def test_views_of_evaluation(bikes):
    """Clips lie beside each other, crops at the left, in the middle and at the right."""
    dataset = VideoClips(bikes, "val", frames=2, size=64, train=False, clips=2, crops=3)
    views, label = dataset[0]
    assert views.shape == (6, 3, 2, 64, 64)
    assert label == 0
    whole = dataset.resize(torch.from_numpy(read_frames(BIKES, np.array([31, 93, 156, 218]))).permute(0, 3, 1, 2))
    assert whole.shape == (4, 3, 64, 150)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    shown = ((views * std + mean) * 255).round().to(torch.uint8).transpose(1, 2)
    for clip, frames in enumerate(([0, 2], [1, 3])):
        for crop, left in enumerate((0, 43, 86)):
            assert torch.equal(shown[3 * clip + crop], whole[frames][..., left:left + 64])
    single, _ = VideoClips(bikes, "val", frames=2, size=64, train=False)[0]
    assert single.shape == (1, 3, 2, 64, 64)


def test_clips_of_training_follow_the_seed(bikes):
    dataset = VideoClips(bikes, "val", frames=3, size=32, train=True)

    def draw(seed):
        random.seed(seed)
        torch.manual_seed(seed)
        return dataset[0][0]

    assert draw(0).shape == (3, 3, 32, 32)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_crop_and_mirror_are_the_same_in_all_frames(tmp_path):
    """A video that does not move stays still."""
    write_video(tmp_path / "train" / "still" / "a.mp4", np.repeat(carphone()[:1, :64, :64], 8, axis=0))
    clip, _ = VideoClips(tmp_path, "train", frames=4, size=32, train=True)[0]
    assert (clip - clip[:, :1]).abs().max() < 0.2  # what compression changes
    assert clip.std() > 0.3
