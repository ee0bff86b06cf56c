"""Streaming a video: the frames that reading gives, each decoded once, in order, in another process."""

import os

import numpy as np
import pytest
from made_videos import shown, status_of, write_late_start, write_video
from PIL import Image

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings, read_frames
from vmae_lab.data.decoding.decoders import read_video
from vmae_lab.data.decoding.pool import DecoderProcess, Decoders
from vmae_lab.data.decoding.stream import CHUNK, stream_video
from vmae_lab.data.frame_sampling import Everything

FRAMES = 2 * CHUNK + 7
PYAV = VideoSettings(decoder="pyav")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streamed")


def together(chunks) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "h264"), ("b.avi", "mpeg4")])
@pytest.mark.parametrize("short_side", [None, 32])
def test_a_stream_has_the_frames_that_reading_gives(folder, name, codec, short_side):
    video = VideoFile(str(write_video(folder / name, FRAMES, codec=codec)))
    chunks = list(stream_video(video, VideoSettings(), short_side))
    assert [len(chunk.frames) for chunk in chunks] == [CHUNK, CHUNK, 7]
    assert [index for chunk in chunks for index in chunk.indices] == list(range(FRAMES))
    assert np.array_equal(together(chunks), read_video(video, Everything(), PYAV, short_side).frames)


def test_pictures_in_a_folder_are_streamed_too(folder):
    (folder / "pictures").mkdir()
    for number in range(1, CHUNK + 3):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / "pictures" / f"img_{number:05d}.png")
    video = VideoFile(str(folder / "pictures"), total=CHUNK + 2, pattern="img_{:05d}.png")
    frames = together(stream_video(video, VideoSettings()))
    assert frames[:, 0, 0, 0].tolist() == list(range(1, CHUNK + 3))


def test_a_video_that_cannot_be_read_is_named(folder, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(400))
    for video in (bad, tmp_path / "missing.mp4"):
        with pytest.raises(VideoError, match=video.name):
            list(stream_video(VideoFile(str(video)), VideoSettings()))
    late = write_late_start(tmp_path / "late.mp4", write_video(tmp_path / "whole.mp4", 40), 5)
    try:
        expected = len(read_frames(late, settings=PYAV))
    except VideoError:
        with pytest.raises(VideoError):
            list(stream_video(VideoFile(str(late)), VideoSettings()))
    else:
        assert len(together(stream_video(VideoFile(str(late)), VideoSettings()))) == expected


def test_another_process_streams_the_same_and_reads_on(folder):
    video = VideoFile(str(write_video(folder / "d.mp4", FRAMES)))
    decoders = Decoders(VideoSettings())
    frames = together(decoders.stream(video))
    assert np.array_equal(frames, read_frames(video.path, settings=PYAV))
    assert shown(frames) == list(range(FRAMES))
    assert next(iter(decoders.stream(video))).frames.shape[0] == CHUNK, "left after a chunk"
    assert len(decoders.read(video, Everything()).frames) == FRAMES, "its process is replaced"
    with pytest.raises(VideoError, match=r"missing\.mp4"):
        list(decoders.stream(VideoFile(str(folder / "missing.mp4"))))
    decoders.close()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="memory is read from /proc")
def test_the_other_process_waits_for_the_reader(folder):
    """It decodes no further than what the pipe takes, so that its memory does not grow with the video."""
    video = VideoFile(str(write_video(folder / "e.mp4", 40 * CHUNK, size=(128, 96))))
    decoder = DecoderProcess(VideoSettings())
    chunks = decoder.stream(video)
    next(chunks)
    before = status_of(decoder.pid, "VmRSS")
    for _ in range(30):
        next(chunks)
    assert status_of(decoder.pid, "VmRSS") < before + 64
    chunks.close()
    decoder.close()
