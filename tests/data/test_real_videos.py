"""Real files of ../shared/videos, whole and broken, against decoding from the start with nothing of this project."""

import csv
import re

import av
import numpy as np
import pytest
from made_videos import NO_VIDEOS, VIDEOS

from vmae_lab.data.sampling import Exactly
from vmae_lab.data.video import VideoError, VideoFile, VideoSettings, read_frames, read_video


def real_files() -> list[dict[str, str]]:
    """Rows of the manifest: every single clip, and of the labelled sets one file a scene or action."""
    if not VIDEOS.is_dir():
        return []
    with open(VIDEOS / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        groups.setdefault(re.sub(r"utinteraction/\w+/(set._seq..).*|(weizmann4/\w+)/.*", r"\1\2", row["path"]), row)
    return list(groups.values())


def expected_decoder(row: dict[str, str]) -> str:
    """Which decoder FINDINGS lets read a file: decord, unless its random access was wrong or its kind is known to be."""
    kind = row["container"] in ("mpegts", "asf") or (row["container"] == "avi" and row["codec"] != "mjpeg")
    pixels = row["pix_fmt"] in ("yuv444p", "yuv420p10le")
    return "pyav" if kind or pixels or row["codec"] == "av1" or row["decord_random_access"] == "WRONG" else "decord"


@pytest.mark.parametrize("row", real_files() or [None], ids=lambda row: row["path"] if row else "none")
def test_real_videos_are_read_frame_exact(row):
    """Unsorted, repeated frames against decoding from the start with nothing of this project."""
    if row is None:
        pytest.skip(NO_VIDEOS)
    path = VIDEOS / row["path"]
    if not row["frames"]:  # cut before its first key frame
        with pytest.raises(VideoError, match=re.escape(path.name)):
            read_frames(path, [0])
        return
    count = int(row["frames"])
    wanted = [int(i) for i in np.random.default_rng(len(row["path"])).integers(0, count, 4)]
    wanted = [*wanted, count - 1, wanted[0]]
    expected, first, decoded = {}, None, 0
    with av.open(str(path)) as video:
        for decoded, frame in enumerate(video.decode(video.streams.best("video")), 1):
            first = first or frame
            if decoded - 1 in wanted:
                pixels = frame.reformat(first.width, first.height, "rgb24").to_ndarray().astype(np.int16)
                expected[decoded - 1] = np.rot90(pixels, round(first.rotation / 90))
    assert decoded == count
    read = read_video(VideoFile(str(path)), Exactly(tuple(wanted)), VideoSettings())
    assert read.info.decoder == expected_decoder(row)
    for index, frame in zip(wanted, read.frames, strict=True):
        assert frame.shape == expected[index].shape
        assert np.abs(frame - expected[index]).mean() < 2, f"frame {index}"
    with pytest.raises(VideoError, match=f"there are {count} frames"):
        read_frames(path, [count])
