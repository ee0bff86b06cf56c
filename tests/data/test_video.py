"""Frames read from files that are made here: exact, upright, and of the size asked for."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
from made_videos import drawn, shown, turned, write_late_start, write_two_streams, write_video
from PIL import Image

from vmae_lab.data.sampling import Dense, Everything, Exactly, dense_window
from vmae_lab.data.video import VideoError, VideoFile, VideoSettings, decoders, read_frames, read_video

BOTH = pytest.mark.parametrize("decoder", ["decord", "pyav"])
HEVC = "keyint=12:log-level=none"


def x264(more: str) -> dict[str, str]:
    return {"x264-params": f"keyint=12:scenecut=0:{more}"}


MADE = {
    "plain.mp4": ("decord", {}),
    "b_frames.mov": ("decord", {"options": x264("bframes=3:b-adapt=0")}),
    "b_frames.mkv": ("decord", {"options": x264("bframes=3:b-adapt=0")}),
    "b_frames.flv": ("decord", {"options": x264("bframes=3:b-adapt=0")}),
    "fragments.mp4": ("decord", {"mux": {"movflags": "frag_keyframe+empty_moov"}}),
    "hevc_closed.mp4": ("decord", {"codec": "libx265", "options": {"x265-params": f"{HEVC}:open-gop=0"}}),
    "mpeg4.mp4": ("decord", {"codec": "mpeg4"}),
    "odd.webm": ("decord", {"codec": "libvpx-vp9", "size": (65, 49)}),
    "mjpeg.avi": ("decord", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (65, 49)}),
    # Frames after a key frame that are shown before it: decord was a few frames off in each of these.
    "open_gop.mp4": ("pyav", {"options": x264("bframes=3:b-adapt=0:open-gop=1")}),
    "open_gop.mkv": ("pyav", {"options": x264("bframes=3:b-adapt=0:open-gop=1")}),
    "hevc.mp4": ("pyav", {"codec": "libx265", "options": {"x265-params": HEVC}}),
    "mpeg4_b_frames.mp4": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "intra_refresh.mp4": ("pyav", {"options": {"x264-params": "keyint=12:bframes=0:intra-refresh=1"}}),
    # Of a kind that decord does not read exactly, or not at all.
    "mpeg4.avi": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "h264.ts": ("pyav", {}),
    "mpeg2.mpg": ("pyav", {"codec": "mpeg2video"}),
    "wmv2.wmv": ("pyav", {"codec": "wmv2"}),
    "av1.mp4": ("pyav", {"codec": "libsvtav1", "size": (64, 64)}),
    "yuv444.mp4": ("pyav", {"pix_fmt": "yuv444p"}),
    "yuv444_fragments.mp4": ("pyav", {"pix_fmt": "yuv444p", "mux": {"movflags": "frag_keyframe+empty_moov"}}),
    "odd.mkv": ("pyav", {"codec": "mpeg4", "size": (65, 49)}),
}


@pytest.mark.parametrize("name", MADE)
def test_made_videos_are_read_frame_exact(tmp_path, name):
    """Every frame by itself, all at once, and from a part of a larger file."""
    decoder, how = MADE[name]
    path = write_video(tmp_path / name, **how)
    whole = read_video(VideoFile(str(path)), Everything(), VideoSettings())
    assert whole.info.decoder == decoder
    assert shown(whole.frames) == list(range(40))
    top, bottom = whole.frames[5, 5].mean(0), whole.frames[5, -5].mean(0)
    assert top[0] > 150 > 80 > top[2]  # red, then blue: the channels' order and the picture's
    assert bottom[2] > 150 > 80 > bottom[0]
    assert [shown(read_frames(path, [i]))[0] for i in range(40)] == list(range(40))
    assert shown(read_frames(path, [31, 7, 7, 39, 0, 13])) == [31, 7, 7, 39, 0, 13]
    with pytest.raises(VideoError, match="there are 40 frames"):
        read_frames(path, [40])
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"#EXTM3U\n" * 64 + path.read_bytes() + b"\0" * 512)
    part = read_video(VideoFile(str(shard), offset=512, size=path.stat().st_size), Exactly((31, 7)), VideoSettings())
    assert part.info.decoder == decoder
    assert np.array_equal(part.frames, whole.frames[[31, 7]])


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.flv"])
def test_a_video_that_starts_between_key_frames_is_read_from_the_start(tmp_path, name):
    """What its first packets give is the decoder's affair; decord miscounts after them."""
    path = write_late_start(tmp_path / name, write_video(tmp_path / "whole.mp4", options={"bf": "0"}), 5)
    whole = read_video(VideoFile(str(path)), Everything(), VideoSettings())
    assert whole.info.decoder == "pyav"
    assert shown(whole.frames)[-28:] == list(range(12, 40))
    singles = [read_frames(path, [i])[0] for i in range(len(whole.frames))]
    assert np.array_equal(np.stack(singles), whole.frames)


def test_of_two_pictures_at_a_time_one_is_read_throughout(tmp_path):
    read = read_video(VideoFile(str(write_two_streams(tmp_path / "two.mp4"))), Exactly((30, 2)), VideoSettings())
    assert read.frames.shape[1:] == (read.info.height, read.info.width, 3)
    assert shown(read.frames) in ([30, 2], [130, 102])


@BOTH
@pytest.mark.parametrize("frames", [1, 2, 7, 15])
def test_short_videos_are_padded_with_their_last_frame(tmp_path, decoder, frames):
    path = write_video(tmp_path / "short.mp4", frames)
    for stride in (1, 4):
        read = read_video(VideoFile(str(path)), Dense(16, stride, 0.5), VideoSettings(decoder=decoder))
        assert shown(read.frames) == list(read.indices) == list(dense_window(frames, 16, stride, 0.5))


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_videos_are_upright(tmp_path, decoder, quarters):
    path = turned(write_video(tmp_path / "turned.mp4", 5, size=(128, 64)), quarters)
    read = read_video(VideoFile(str(path)), Exactly((3,)), VideoSettings(decoder=decoder))
    assert np.abs(read.frames[0] - np.rot90(drawn(3, 128, 64), -quarters).astype(int)).mean() < 8
    assert read.frames.flags.c_contiguous  # as they are sent from another process
    small = read_video(VideoFile(str(path)), Exactly((3,)), VideoSettings(decoder=decoder), short_side=32).frames
    assert small.shape[1:3] == ((64, 32) if quarters % 2 else (32, 64))


@BOTH
@pytest.mark.parametrize("size", [(160, 96), (96, 160), (130, 130)])
def test_short_side_is_as_asked_and_close_to_another_resize(tmp_path, decoder, size):
    noise = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    pictures = [np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))] * 3
    path = write_video(tmp_path / "smooth.mp4", pictures, options={"crf": "10"})
    settings = VideoSettings(decoder=decoder)
    full = read_frames(path, [1], settings)[0]
    for side in (17, 48, 95, 96, 500):
        frame = read_video(VideoFile(str(path)), Exactly((1,)), settings, short_side=side).frames[0]
        if side >= min(size):
            assert np.array_equal(frame, full)
            continue
        width, height = (round(length * side / min(size)) for length in size)
        assert min(frame.shape[:2]) == side
        assert frame.shape == (height, width, 3)
        expected = np.asarray(Image.fromarray(full).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(frame - expected).mean() < 3


@pytest.mark.parametrize(("suffix", "start"), [("jpg", 1), ("png", 0)])
def test_folders_of_frames(tmp_path, suffix, start):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(drawn(number)).save(folder / f"{start + number:03d}.{suffix}")
    video = VideoFile(str(folder), str(tmp_path), start, 6, "{:03d}." + suffix)
    read = read_video(video, Exactly((5, 0, 2, 2)), VideoSettings())
    assert shown(read.frames) == [5, 0, 2, 2]
    assert read.frames[0, 5, 5, 0] > 150 > 80 > read.frames[0, 5, 5, 2]
    assert read_video(video, Exactly((1,)), VideoSettings(), short_side=24).frames.shape == (1, 24, 32, 3)
    with pytest.raises(VideoError, match="there are 6 frames"):
        read_video(video, Exactly((6,)), VideoSettings())
    with pytest.raises(VideoError, match="max_pixels"):
        read_video(video, Exactly((1,)), VideoSettings(max_pixels=64 * 48 - 1))
    first, *others = (folder / f"{start + number:03d}.{suffix}" for number in range(6))
    cut, size, link, pipe, _ = others
    half = cut.read_bytes()[: cut.stat().st_size // 2]
    for path in (first, size, link, pipe):
        path.unlink()
    cut.write_bytes(half)
    Image.fromarray(drawn(0, 32, 32)).save(size)
    Image.fromarray(drawn(0)).save(tmp_path.parent / f"outside.{suffix}")
    link.symlink_to(tmp_path.parent / f"outside.{suffix}")
    os.mkfifo(pipe)
    for indices, path, cause in (
        ((0,), first, "there is no such file"),
        ((1,), cut, "(?i:truncated)"),
        ((2, 5), others[-1], "its size differs from that of frame 2"),
        ((3,), link, "leads out of the root"),
        ((4,), pipe, "a named pipe"),
    ):
        with pytest.raises(VideoError, match=f"{re.escape(path.name)}.*{cause}"):
            read_video(video, Exactly(indices), VideoSettings())


def test_a_header_that_promises_too_much_is_not_believed(tmp_path):
    """A hundred million frames are a list of four gigabytes before the first one is decoded."""
    path = write_video(tmp_path / "video.avi", codec="mpeg4")
    data = bytearray(path.read_bytes())
    start = data.index(b"vids") + 32  # of the stream's header, which follows this word
    assert int.from_bytes(data[start : start + 4], "little") == 40
    data[start : start + 4] = (10**8).to_bytes(4, "little")
    path.write_bytes(data)
    assert shown(read_frames(path)) == list(range(40))
    assert read_video(VideoFile(str(path)), Exactly((39,)), VideoSettings()).info.frames == 0


def test_what_a_check_saw_is_not_looked_for_again_unless_the_file_has_changed(tmp_path, monkeypatch):
    """To find out which decoder is exact every packet is read, to count frames each is decoded: minutes for a film."""

    def searched(*given):
        raise AssertionError("this file was checked")

    path = write_video(tmp_path / "video.mkv")  # whose header tells no number of frames
    size = path.stat().st_size
    unchecked = read_video(VideoFile(str(path)), Exactly((39, 3)), VideoSettings())
    by_pyav = VideoFile(str(path), decoder="pyav", frames=40, bytes=size)
    for name in ("_seeks_are_exact", "count_frames"):
        monkeypatch.setattr(decoders, name, searched)
    for checked in (by_pyav, replace(by_pyav, decoder="decord")):
        read = read_video(checked, Exactly((39, 3)), VideoSettings())
        assert (read.info.decoder, read.info.frames) == (checked.decoder, 40)
        assert shown(read.frames) == shown(unchecked.frames) == [39, 3]
    for changed in (VideoFile(str(path)), replace(by_pyav, bytes=size + 1)):
        with pytest.raises(AssertionError, match="was checked"):
            read_video(changed, Exactly((0,)), VideoSettings())
    hidden = write_video(tmp_path / "444.mp4", pix_fmt="yuv444p")
    lying = VideoFile(str(hidden), decoder="decord", frames=40, bytes=hidden.stat().st_size)
    assert read_video(lying, Exactly((0,)), VideoSettings()).info.decoder == "pyav", "what the header tells still counts"


def test_torchcodec_reads_the_same_frames(tmp_path):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load: {str(error)[:100]}")
    for name in ("plain.mp4", "open_gop.mp4", "hevc.mp4", "av1.mp4", "odd.webm"):
        path = write_video(tmp_path / name, **MADE[name][1])
        assert shown(read_frames(path, [31, 7, 7, 39, 0, 13], VideoSettings(decoder="torchcodec"))) == [31, 7, 7, 39, 0, 13]
