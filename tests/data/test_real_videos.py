"""Real files of ../shared/videos, intact and broken, compared with independent decoding from the start."""

import contextlib
import csv
import re
import time
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import NO_VIDEOS, VIDEOS, status_of
from PIL import Image

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings, read_frames, read_video
from vmae_lab.data.decoding.decoders import SEEKING, seeks_exactly
from vmae_lab.data.decoding.inspection import inspect_video, time_video
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.frame_sampling import Dense, Exactly


def real_files() -> list[dict[str, str]]:
    """Return rows of the manifest: every single clip, and one file per scene or action of the labeled sets."""
    if not VIDEOS.is_dir():
        return []
    with open(VIDEOS / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups = {}
    for row in rows:
        groups.setdefault(re.sub(r"utinteraction/\w+/(set._seq..).*|(weizmann4/\w+)/.*", r"\1\2", row["path"]), row)
    return list(groups.values())


def expected_decoder(row: dict[str, str]) -> str:
    """Return the decoder of a file according to FINDINGS: decord, unless its random access is wrong.

    In FLV and fragmented MP4 with B-frames, a few frames near key frames are wrong, which random samples may miss.
    """
    path = VIDEOS / row["path"]
    if row["container"] == "flv" or (row["container"] == "mov" and b"moof" in path.read_bytes()):
        with av.open(str(path)) as video:
            if len({packet.pts - packet.dts for packet in video.demux(video=0) if packet.size}) > 1:
                return "pyav"
    kind = row["container"] in ("mpegts", "asf") or (row["container"] == "avi" and row["codec"] != "mjpeg")
    pixels = row["pix_fmt"] in ("yuv444p", "yuv420p10le")
    return "pyav" if kind or pixels or row["codec"] == "av1" or row["decord_random_access"] == "WRONG" else "decord"


@pytest.mark.slow
@pytest.mark.parametrize("row", real_files() or [None], ids=lambda row: row["path"] if row else "none")
def test_real_videos_are_read_frame_by_frame(row):
    """Unsorted and repeated frames are compared with independent decoding from the start."""
    if row is None:
        pytest.skip(NO_VIDEOS)
    path = VIDEOS / row["path"]
    if not row["frames"]:  # truncated before its first key frame
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
                pixels = Image.fromarray(frame.to_ndarray(format="rgb24")).resize((first.width, first.height), Image.BILINEAR)
                expected[decoded - 1] = np.rot90(np.asarray(pixels).astype(np.int16), round(first.rotation / 90))
    assert decoded == count
    read = read_video(VideoFile(str(path)), Exactly(tuple(wanted)), VideoSettings())
    assert read.info.decoder == expected_decoder(row)
    # For fragments that PyAV reads, only decoding gives the number of frames.
    only_decoded = b"moof" in path.read_bytes() and read.info.decoder == "pyav"
    assert row["container"] != "mov" or read.info.frames == (0 if only_decoded else count)
    if read.info.decoder == "pyav" and seeks_exactly(VideoFile(str(path)), VideoSettings()):
        checked = VideoFile(str(path), decoder=SEEKING, frames=count, bytes=path.stat().st_size)
        seeking = read_video(checked, Exactly(tuple(wanted)), VideoSettings())
        assert seeking.info.decoder == SEEKING
        assert np.array_equal(seeking.frames, read.frames)
    for index, frame in zip(wanted, read.frames, strict=True):
        assert frame.shape == expected[index].shape
        assert np.abs(frame - expected[index]).mean() < 2, f"frame {index}"
    with pytest.raises(VideoError, match=rf"has {count} frames?\b"):
        read_frames(path, [count])
    seen, timed = inspect_video(VideoFile(str(path)), VideoSettings()), time_video(VideoFile(str(path)), VideoSettings())
    assert (seen.frames, seen.decoder) == (count, expected_decoder(row))
    packed = (row["container"], row["codec"]) == ("avi", "mpeg4")  # may have packets without a frame
    assert timed.info.frames - count in (range(4) if packed else (0,))


BAD = sorted(path for path in (VIDEOS / "bad").rglob("*") if path.is_file() and path.suffix != ".csv")
# Damage inside the pictures' own bits, or in tables, that a decoder does not see: known limits.
SILENTLY_WRONG = {
    "corrupt_bitflips3.mp4": "decord conceals three flipped bits: 29 of 180 frames are wrong until the next key frame",
    "corrupt_bitflips60.mp4": "decord conceals sixty flipped bits: all frames but one are wrong",
    "corrupt_middle10pct.mkv": "10% is overwritten; the other frames are renumbered, 45 fewer, and decord raises no error",
    "truncated50.mkv": "the last packet is cut in two: its frame is wrong below the cut",
    "moov_stsz_random.mp4": "a table of random packet sizes: three frames are made of the wrong bytes",
}
TOLD_BY_PYAV = ("corrupt_bitflips3.mp4", "corrupt_bitflips60.mp4", "corrupt_middle10pct.mkv")


def undamaged(path: Path) -> Path:
    """Return the file that a broken one was made from, or the file itself if that is unknown."""
    made = path.name.startswith(("truncated", "corrupt", "avi_header", "avi_rate", "mdhd", "moov_stsz", "header_says"))
    return path.with_name({".mp4": "_clean_moovfirst.mp4"}.get(path.suffix, f"_clean{path.suffix}")) if made else path


@lru_cache(maxsize=4)
def decoded(path: Path) -> list[np.ndarray]:
    """Return all frames of a file that PyAV decodes, upright."""
    frames = []
    with av.open(str(path)) as video, contextlib.suppress(av.FFmpegError):
        stream = video.streams.best("video")
        stream.thread_type = "NONE"
        for frame in video.decode(stream):
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).astype(np.int16))
    return frames


@pytest.fixture(scope="module")
def decoder():
    process = DecoderProcess(VideoSettings(timeout_s=10))
    yield process
    process.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", BAD or [None], ids=lambda path: re.sub(r"\W", "_", path.name[:40]) if path else "none")
def test_broken_and_malicious_files_are_errors_or_read_correctly(decoder, path):
    """They cause no hang, crash or high memory use. Frames that are read equal those of the intact file."""
    if path is None:
        pytest.skip(NO_VIDEOS)
    wrong, named = 0, []
    for position in (0, 0.5, 0.999):
        start = time.monotonic()
        try:
            read = decoder.read(VideoFile(str(path), str(VIDEOS)), Dense(16, 1, position))
        except VideoError as error:
            named.append(path.name in error.path and path.name in str(error))
        else:
            expected = decoded(undamaged(path))
            for index, frame in zip(read.indices, read.frames, strict=True):
                wrong += not (index < len(expected) and np.abs(frame - expected[index]).mean() < 2)
        assert time.monotonic() - start < 60
        assert status_of(decoder._process.pid, "VmHWM") < 2048
    assert all(named)
    assert bool(wrong) == (path.name in SILENTLY_WRONG), f"{wrong} frames are wrong"


@pytest.mark.parametrize("name", TOLD_BY_PYAV)
def test_pyav_reports_damage_that_decord_conceals(name):
    """So a check that decodes each file completely can find it."""
    if not VIDEOS.is_dir():
        pytest.skip(NO_VIDEOS)
    with pytest.raises(VideoError, match="is damaged"):
        read_frames(VIDEOS / "bad" / name, settings=VideoSettings(decoder="pyav"))


def test_unusual_names_are_read_from_their_folder(decoder, monkeypatch):
    """The decoder process was started in another folder."""
    if not VIDEOS.is_dir():
        pytest.skip(NO_VIDEOS)
    decoder.read(VideoFile(str(VIDEOS / "bad" / "UPPER.MP4")), Dense(16, 1, 0))
    monkeypatch.chdir(VIDEOS / "bad")
    same = decoded(VIDEOS / "bad" / "UPPER.MP4")
    names = ["emoji_😀.mp4", "percent_%04d.mp4", "proto:colon.mp4", "space name.mp4", "quote'and\"dq.mp4", "#hash?query=1.mp4"]
    for name in [*names, "back\\slash.mp4", "comma,semi;colon.mp4", "noext", "경로 한글/동영상 파일.mp4"]:
        assert np.abs(decoder.read(VideoFile(name), Dense(16, 1, 0)).frames - np.stack(same)).mean() < 2
    assert decoder.read(VideoFile("-dash_1x1.mp4"), Dense(16, 1, 0)).frames.shape == (16, 1, 1, 3)
