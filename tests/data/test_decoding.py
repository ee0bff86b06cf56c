"""Decoding of generated files: exact and upright frames of the requested size."""

import os
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import (
    boxes,
    drawn,
    shown,
    with_matrix,
    write_edited,
    write_filtered,
    write_late_start,
    write_two_streams,
    write_video,
)
from PIL import Image

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings, decoders, read_frames, read_video, stream
from vmae_lab.data.decoding.inspection import inspect_video, time_video
from vmae_lab.data.frame_sampling import Dense, Everything, Exactly

BOTH = pytest.mark.parametrize("decoder", ["decord", "pyav"])
SETTINGS = [VideoSettings(), VideoSettings(decoder="pyav")]
HEVC = "keyint=12:log-level=none"


def x264(more: str) -> dict[str, str]:
    return {"x264-params": f"keyint=12:scenecut=0:{more}"}


IN_ORDER = x264("bframes=0")  # frames are stored in display order
MADE = {
    "plain.mp4": ("decord", {}),
    "b_frames.mov": ("decord", {"options": x264("bframes=3:b-adapt=0")}),
    "b_frames.mkv": ("decord", {"options": x264("bframes=3:b-adapt=0")}),
    "in_order.flv": ("decord", {"options": IN_ORDER}),
    # Their sample table has no frames, those of the first fragment, or those of an index at the end of the file.
    "fragments.mp4": ("decord", {"mux": {"movflags": "frag_keyframe+empty_moov"}, "options": IN_ORDER}),
    "first_fragment_in_table.mp4": ("decord", {"mux": {"movflags": "frag_keyframe"}, "options": IN_ORDER}),
    "fragment_per_frame.mov": ("pyav", {"mux": {"movflags": "frag_every_frame"}, "options": x264("bframes=3:b-adapt=0")}),
    "dash.mp4": ("decord", {"mux": {"movflags": "dash"}, "options": IN_ORDER}),
    "cmaf.mp4": ("decord", {"mux": {"movflags": "cmaf"}, "options": IN_ORDER}),
    "fragments_by_size.mp4": ("decord", {"mux": {"frag_size": "3000"}, "options": IN_ORDER}),
    "fragments_without_end.mp4": ("decord", {"mux": {"movflags": "frag_keyframe+skip_trailer"}, "options": IN_ORDER}),
    "fragments_joined.mp4": ("decord", {"mux": {"movflags": "hybrid_fragmented"}}),
    "smooth_streaming.ismv": ("decord", {"options": IN_ORDER}),
    "fragments_vp9.mp4": ("decord", {"codec": "libvpx-vp9", "mux": {"movflags": "frag_keyframe"}}),
    "dash_av1.mp4": ("pyav", {"codec": "libsvtav1", "size": (64, 64), "mux": {"movflags": "dash"}}),
    "dash_ten_bit.mp4": ("pyav", {"pix_fmt": "yuv420p10le", "mux": {"movflags": "dash+global_sidx"}}),
    "dash_open_gop.mp4": ("pyav", {"options": x264("bframes=3:b-adapt=0:open-gop=1"), "mux": {"movflags": "dash"}}),
    "fragments_hevc.mp4": (
        "pyav",
        {"codec": "libx265", "options": {"x265-params": HEVC}, "mux": {"movflags": "frag_keyframe"}},
    ),
    "fragments_mpeg4.mov": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}, "mux": {"movflags": "frag_every_frame"}}),
    "hevc_closed.mp4": ("decord", {"codec": "libx265", "options": {"x265-params": f"{HEVC}:open-gop=0"}}),
    "mpeg4.mp4": ("decord", {"codec": "mpeg4"}),
    "odd.webm": ("decord", {"codec": "libvpx-vp9", "size": (65, 49)}),
    "mjpeg.avi": ("decord", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (65, 49)}),
    # Frames after a key frame that are shown before it. decord was off by a few frames in all of these.
    "open_gop.mp4": ("pyav", {"options": x264("bframes=3:b-adapt=0:open-gop=1")}),
    "open_gop.mkv": ("pyav", {"options": x264("bframes=3:b-adapt=0:open-gop=1")}),
    "hevc.mp4": ("pyav", {"codec": "libx265", "options": {"x265-params": HEVC}}),
    "mpeg4_b_frames.mp4": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "intra_refresh.mp4": ("pyav", {"options": {"x264-params": "keyint=12:bframes=0:intra-refresh=1"}}),
    # B-frames in FLV and in fragments: near key frames, decord gave neighboring frames.
    "b_frames.flv": ("pyav", {"options": x264("bframes=3:b-adapt=0")}),
    "short_last_group.flv": ("pyav", {"options": {"x264-params": "keyint=13:scenecut=0:bframes=2"}}),
    "fragments_b_frames.mp4": ("pyav", {"mux": {"movflags": "frag_keyframe+empty_moov"}}),
    "short_fragments.mp4": ("pyav", {"mux": {"movflags": "frag_keyframe"}, "options": {"x264-params": "keyint=3:bframes=3"}}),
    "smooth_streaming_b_frames.ismv": ("pyav", {}),
    # Kinds of files that decord does not read exactly, or not at all.
    "mpeg4.avi": ("pyav", {"codec": "mpeg4", "options": {"bf": "2"}}),
    "h264.ts": ("pyav", {}),
    "camcorder.m2ts": ("pyav", {"mux": {"mpegts_m2ts_mode": "1"}}),
    "key_frame_index.flv": ("pyav", {"options": x264("bframes=3:b-adapt=0"), "mux": {"flvflags": "add_keyframe_index"}}),
    "mpeg2.mpg": ("pyav", {"codec": "mpeg2video"}),
    "wmv2.wmv": ("pyav", {"codec": "wmv2"}),
    "b_frames.ts": ("pyav", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "stream.m2v": ("pyav", {"codec": "mpeg2video", "options": {"bf": "2"}}),
    "av1.mp4": ("pyav", {"codec": "libsvtav1", "size": (64, 64)}),
    "av1.mkv": ("pyav", {"codec": "libsvtav1", "size": (64, 64)}),
    "yuv444.mp4": ("pyav", {"pix_fmt": "yuv444p"}),
    "yuv444_fragments.mp4": ("pyav", {"pix_fmt": "yuv444p", "mux": {"movflags": "frag_keyframe+empty_moov"}}),
    "odd.mkv": ("pyav", {"codec": "mpeg4", "size": (65, 49)}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that returns the path of a video of MADE. It writes the video when it is first requested."""
    folder = tmp_path_factory.mktemp("made")

    def write(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_video(path, **MADE[name][1])

    return write


@pytest.mark.parametrize("name", MADE)
def test_made_videos_are_read_frame_by_frame(made, tmp_path, name):
    """Frames are read one by one, all at once, and from a part of a larger file."""
    decoder, path = MADE[name][0], made(name)
    whole = read_video(VideoFile(str(path)), Everything(), VideoSettings())
    assert whole.info.decoder == decoder
    assert shown(whole.frames) == list(range(40))
    top, bottom = whole.frames[5, 5].mean(0), whole.frames[5, -5].mean(0)
    assert top[0] > 150 > 80 > top[2]  # red above blue: checks the order of channels and rows
    assert bottom[2] > 150 > 80 > bottom[0]
    assert [shown(read_frames(path, [i]))[0] for i in range(40)] == list(range(40))
    assert shown(read_frames(path, [31, 7, 7, 39, 0, 13])) == [31, 7, 7, 39, 0, 13]
    with pytest.raises(VideoError, match="has 40 frames"):
        read_frames(path, [40])
    shard = tmp_path / "shard.tar"
    shard.write_bytes(b"#EXTM3U\n" * 64 + path.read_bytes() + b"\0" * 512)
    part = read_video(VideoFile(str(shard), offset=512, size=path.stat().st_size), Exactly((31, 7)), VideoSettings())
    assert part.info.decoder == decoder
    assert np.array_equal(part.frames, whole.frames[[31, 7]])


@pytest.mark.parametrize("name", MADE)
def test_all_ways_to_read_a_video_give_the_same_frames(made, name):
    """Also with a specific decoder, which may refuse the file; after a check; and by frame times."""
    decoder, path = MADE[name][0], made(name)
    seen, timed = inspect_video(VideoFile(str(path)), VideoSettings()), time_video(VideoFile(str(path)), VideoSettings())
    assert (seen.status, seen.frames, seen.decoder) == ("ok", 40, decoder)
    assert (timed.info.frames, round(timed.rate, 3)) == (40, 25)
    checked = VideoFile(str(path), decoder=seen.decoder, frames=seen.frames, bytes=seen.bytes)
    by_pyav = read_video(VideoFile(str(path)), Everything(), VideoSettings(decoder="pyav"))
    assert shown(by_pyav.frames) == list(range(40))
    assert np.array_equal(read_video(checked, Everything(), VideoSettings(decoder="pyav")).frames, by_pyav.frames)
    assert shown(read_video(checked, Exactly((39, 0, 17)), VideoSettings()).frames) == [39, 0, 17]
    if decoder == "decord":
        assert shown(read_frames(path, [39, 0, 17], VideoSettings(decoder="decord"))) == [39, 0, 17]
        return
    with pytest.raises(VideoError, match=re.escape(name)):
        read_frames(path, [0], VideoSettings(decoder="decord"))
    assert inspect_video(VideoFile(str(path)), VideoSettings(decoder="decord")).status == "failed"


@pytest.mark.parametrize("name", [name for name, (decoder, _) in MADE.items() if decoder == "pyav"])
def test_decoding_from_key_frames_gives_the_frames_of_decoding_in_order(made, tmp_path, monkeypatch, name):
    path = made(name)
    exact = name != "intra_refresh.mp4"  # its key frames have only a part of a picture
    assert decoders.seeks_exactly(VideoFile(str(path)), VideoSettings()) == exact
    if not exact:
        return
    in_order = read_frames(path)
    shard, size = tmp_path / "shard.tar", path.stat().st_size
    shard.write_bytes(b"\0" * 512 + path.read_bytes() + b"\0" * 512)
    assert decoders.seeks_exactly(VideoFile(str(shard), offset=512, size=size), VideoSettings())
    checked = VideoFile(str(path), decoder=decoders.SEEKING, frames=40, bytes=size)
    monkeypatch.delitem(decoders.READERS, "pyav")
    for file in (checked, replace(checked, path=str(shard), offset=512, size=size)):
        for indices in (range(40), (31, 7, 7, 39, 0, 13), *((index,) for index in range(40))):
            read = read_video(file, Exactly(tuple(indices)), VideoSettings())
            assert (read.info.decoder, read.info.frames) == (decoders.SEEKING, 40)
            assert np.array_equal(read.frames, in_order[list(indices)]), indices
    small = read_video(checked, Exactly((20, 30)), VideoSettings(), 24).frames
    monkeypatch.undo()
    assert np.array_equal(small, read_video(VideoFile(str(path)), Exactly((20, 30)), VideoSettings(), 24).frames)


def test_a_video_that_has_changed_since_its_check_is_decoded_in_order(made):
    for name in ("b_frames.ts", "av1.mp4"):
        path = made(name)
        checked = VideoFile(str(path), decoder=decoders.SEEKING, frames=30, bytes=path.stat().st_size)
        read = read_video(checked, Exactly((29, 3)), VideoSettings())
        assert (read.info.decoder, shown(read.frames)) == ("pyav", [29, 3])


SEGMENTED = pytest.mark.parametrize("movflags", ["dash", "frag_keyframe+empty_moov+default_base_moof"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.mp4", "dash.mp4", "first_fragment_in_table.mp4", "dash_open_gop.mp4", "b_frames.mkv"])
def test_a_part_of_a_shard_is_read_like_a_file(tmp_path, name):
    """The part is larger than a read buffer, so two readers of one handle would interfere."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 120, 160, 3), np.uint8)
    noise[:, 40:80] = [drawn(number, 160, 120)[40:80] for number in range(40)]
    path = write_video(tmp_path / name, list(noise), **MADE[name][1])
    data, shard = path.read_bytes(), tmp_path / "shard.tar"
    assert len(data) > 200_000
    shard.write_bytes(b"\0" * 512 + data + b"\0" * 512)
    file, part = VideoFile(str(path)), VideoFile(str(shard), offset=512, size=len(data))
    assert inspect_video(part, VideoSettings()) == inspect_video(file, VideoSettings())
    assert time_video(part, VideoSettings()) == time_video(file, VideoSettings())
    for settings in SETTINGS:
        read = read_video(part, Everything(), settings)
        assert shown(read.frames) == list(range(40))
        assert np.array_equal(read.frames, read_frames(path, settings=settings))


def test_frames_hidden_by_an_edit_list_are_skipped(tmp_path):
    path = write_edited(tmp_path / "edited.mp4", write_video(tmp_path / "whole.mp4", options={"bf": "0"}), 17)
    video = VideoFile(str(path))
    for settings in SETTINGS:
        read = read_video(video, Everything(), settings)
        assert (shown(read.frames), read.info.frames) == (list(range(17, 40)), 23)
    seen = inspect_video(video, VideoSettings())
    assert (seen.status, seen.frames, time_video(video, VideoSettings()).info.frames) == ("ok", 23, 23)


@SEGMENTED
def test_incomplete_dash_segments_are_refused(tmp_path, movflags):
    parts = boxes(write_video(tmp_path / "whole.mp4", options=x264("bframes=2"), mux={"movflags": movflags}))
    moov = next(number for number, (kind, _) in enumerate(parts) if kind == "moov")
    moofs = [number for number, (kind, _) in enumerate(parts) if kind == "moof"]
    start = b"".join(data for _, data in parts[: moov + 1])
    first, second = (b"".join(data for _, data in parts[number : number + 2]) for number in moofs[:2])
    styp, emsg = b"\0\0\0\x18stypmsdh\0\0\0\0msdhmsix", b"\0\0\0\x10emsg" + b"\0" * 8
    for data in (start, first, styp + first, emsg + styp + first, b"".join(data for _, data in parts[moov + 1 :])):
        path = tmp_path / "segment.m4s"
        path.write_bytes(data)
        video = VideoFile(str(path))
        for decoder in ("auto", "decord", "pyav"):
            with pytest.raises(VideoError, match=r"segment\.m4s.*initialization segment"):
                read_video(video, Everything(), VideoSettings(decoder=decoder))
        with pytest.raises(VideoError, match=r"segment\.m4s.*initialization segment"):
            time_video(video, VideoSettings())
        assert "initialization segment" in inspect_video(video, VideoSettings()).cause
    joined = tmp_path / "joined.mp4"
    joined.write_bytes(start + styp + first + start + styp + second)  # the second initialization segment is skipped
    assert shown(read_frames(joined)) == list(range(24))
    joined.write_bytes(start + second)
    assert shown(read_frames(joined)) == list(range(12, 24))


@SEGMENTED
@pytest.mark.parametrize("codec", ["h264", "libsvtav1"])
def test_check_and_read_agree_on_truncated_recordings(tmp_path, movflags, codec):
    path = write_video(tmp_path / "cut.mp4", codec=codec, size=(64, 64), mux={"movflags": movflags})
    parts = boxes(path)
    fragment = [number for number, (kind, _) in enumerate(parts) if kind == "moof"][2]
    whole, media = (b"".join(data for _, data in parts[:end]) for end in (fragment, fragment + 2))
    for data, status in ((whole, "ok"), (media[: len(whole) + len(media) >> 1], "damaged")):
        path.write_bytes(data)
        video = VideoFile(str(path))
        seen = inspect_video(video, VideoSettings())
        assert (seen.status, seen.frames >= 20) == (status, True)
        checked = replace(video, decoder=seen.decoder, frames=seen.frames, bytes=seen.bytes)
        for file in (video, checked):
            for decoder in ("auto", "pyav"):
                frames = read_video(file, Everything(), VideoSettings(decoder=decoder)).frames
                assert shown(frames) == list(range(seen.frames))


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.flv"])
def test_a_video_that_starts_between_key_frames_is_read_from_the_start(tmp_path, name):
    """Decoders treat the first packets differently, and decord miscounts after them."""
    path = write_late_start(tmp_path / name, write_video(tmp_path / "whole.mp4", options={"bf": "0"}), 5)
    whole = read_video(VideoFile(str(path)), Everything(), VideoSettings())
    assert whole.info.decoder == "pyav"
    assert shown(whole.frames)[-28:] == list(range(12, 40))
    singles = [read_frames(path, [i])[0] for i in range(len(whole.frames))]
    assert np.array_equal(np.stack(singles), whole.frames)


def test_one_stream_is_read_if_a_file_has_several(tmp_path):
    read = read_video(VideoFile(str(write_two_streams(tmp_path / "two.mp4"))), Exactly((30, 2)), VideoSettings())
    assert read.frames.shape[1:] == (read.info.height, read.info.width, 3)
    assert shown(read.frames) in ([30, 2], [130, 102])


@BOTH
@pytest.mark.parametrize("frames", [1, 2, 7, 15])
def test_short_videos_are_padded_with_their_last_frame(tmp_path, decoder, frames):
    path = write_video(tmp_path / "short.mp4", frames)
    for stride in (1, 4):
        read = read_video(VideoFile(str(path)), Dense(16, stride, 0.5), VideoSettings(decoder=decoder))
        assert shown(read.frames) == list(read.indices) == list(Dense(16, stride, 0.5)(frames))


def shown_at(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Move each pixel (x, y) to (ax + cy, bx + dy), shifted into the picture."""
    y, x = np.indices(pixels.shape[:2])
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    moved = np.empty((row.max() + 1, column.max() + 1, 3), pixels.dtype)
    moved[row, column] = pixels
    return moved


SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
ORIENTATIONS = [(a, 0, 0, d) for a, d in SIGNS] + [(0, b, c, 0) for b, c in SIGNS]


@pytest.mark.parametrize("movflags", ["", "frag_keyframe"])
@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_all_eight_orientations_are_read_upright(tmp_path, matrix, movflags):
    mux = {"movflags": movflags} if movflags else {}
    path = with_matrix(write_video(tmp_path / "oriented.mp4", 20, size=(128, 64), mux=mux, options=IN_ORDER), *matrix)
    video, expected = VideoFile(str(path)), shown_at(drawn(13, 128, 64), *matrix)
    a, b, c, d = matrix
    mirrored = a * d - b * c < 0
    for settings in SETTINGS:
        read = read_video(video, Exactly((13, 2)), settings)
        assert read.frames.shape[1:] == expected.shape
        assert np.abs(read.frames[0] - expected.astype(int)).mean() < 8
        assert read.frames.flags.c_contiguous  # as needed to send them to another process
        small = read_video(video, Exactly((13,)), settings, short_side=32).frames[0]
        assert small.shape == (expected.shape[0] // 2, expected.shape[1] // 2, 3)
        assert np.abs(small - expected[::2, ::2].astype(int)).mean() < 12
    if mirrored:  # decord would rotate them
        with pytest.raises(VideoError, match=r"oriented\.mp4"):
            read_video(video, Exactly((13,)), VideoSettings(decoder="decord"))
    else:
        assert read_video(video, Exactly((13,)), VideoSettings()).info.decoder == "decord"
    seen = inspect_video(video, VideoSettings())
    assert (seen.height, seen.width, seen.mirrored) == (*expected.shape[:2], mirrored)
    stored = drawn(13, 128, 64)
    assert np.array_equal(np.rot90(stored[:, ::-1] if seen.mirrored else stored, seen.rotation // 90), expected)
    checked = replace(video, decoder="decord", frames=20, bytes=seen.bytes)  # the result of a check by an earlier version
    assert np.abs(read_video(checked, Exactly((13,)), VideoSettings()).frames[0] - expected.astype(int)).mean() < 8


def test_other_display_matrices_are_rounded_to_the_nearest_orientation(tmp_path):
    """Other angles, scales and a matrix of zeros are not applied."""
    path = write_video(tmp_path / "matrix.mp4", 5, size=(128, 64))
    for matrix, nearest in {
        (0, 0, 0, 0): (1, 0, 0, 1),
        (2, 0, 0, 1): (1, 0, 0, 1),
        (0, 0.5, -2, 0): (0, 1, -1, 0),
        (1, 0.5, 0, 1): (1, 0, 0, 1),
        (0.77, 0.64, -0.64, 0.77): (1, 0, 0, 1),  # 40 degrees
        (0.64, 0.77, -0.77, 0.64): (0, 1, -1, 0),  # 50 degrees
        (-0.77, 0.64, 0.64, 0.77): (-1, 0, 0, 1),
    }.items():
        with_matrix(path, *matrix)
        for settings in SETTINGS:
            frame = read_frames(path, [3], settings)[0].astype(int)
            assert frame.shape == shown_at(drawn(3, 128, 64), *nearest).shape, matrix
            assert np.abs(frame - shown_at(drawn(3, 128, 64), *nearest)).mean() < 8, matrix


@pytest.mark.parametrize("where", ["matroska", "pictures"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_outside_mp4_headers_is_applied(tmp_path, where, mirrored):
    """decord ignores rotation in Matroska headers and in the data of frames, which only key frames have."""
    if where == "matroska":
        display = {"degrees": 180, "hflip": True} if mirrored else {"degrees": 90}
        path = write_video(tmp_path / "turned.mkv", 20, size=(128, 64), display=display)
        expected = drawn(13, 128, 64)[::-1] if mirrored else np.rot90(drawn(13, 128, 64))
    else:
        change = "flip=horizontal" if mirrored else "rotate=90"
        path = write_video(tmp_path / "plain.mp4", 20, size=(128, 64))
        path = write_filtered(tmp_path / "turned.mp4", path, f"h264_metadata=display_orientation=insert:{change}")
        expected = drawn(13, 128, 64)[:, ::-1] if mirrored else np.rot90(drawn(13, 128, 64))
    for settings in SETTINGS:
        frames = read_frames(path, [13, 2], settings).astype(int)
        assert frames.shape[1:] == expected.shape
        assert np.abs(frames[0] - expected).mean() < 8
    with pytest.raises(VideoError, match="turned"):
        read_frames(path, [13], VideoSettings(decoder="decord"))
    seen = inspect_video(VideoFile(str(path)), VideoSettings())
    assert (seen.decoder, seen.mirrored, seen.height, seen.width) == ("pyav", mirrored, *expected.shape[:2])


@BOTH
@pytest.mark.parametrize("size", [(160, 96), (96, 160), (130, 130)])
def test_the_short_side_is_reduced(tmp_path, decoder, size):
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
    with pytest.raises(VideoError, match="has 6 frames"):
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
        ((2, 5), others[-1], "its size differs from frame 2"),
        ((3,), link, "outside the root"),
        ((4,), pipe, "a named pipe"),
    ):
        with pytest.raises(VideoError, match=f"{re.escape(path.name)}.*{cause}"):
            read_video(video, Exactly(indices), VideoSettings())


@pytest.mark.parametrize("announced", [10**8, 42, 12])
def test_a_wrong_number_of_frames_in_a_header_is_corrected(tmp_path, announced):
    """Indices of 100 million frames would need 4 GB of memory. Too few frames would hide the end."""
    path = write_video(tmp_path / "video.avi", codec="mpeg4")
    data = bytearray(path.read_bytes())
    start = data.index(b"vids") + 32  # start of the stream header after this marker
    assert int.from_bytes(data[start : start + 4], "little") == 40
    data[start : start + 4] = announced.to_bytes(4, "little")
    path.write_bytes(data)
    assert shown(read_frames(path)) == list(range(40))
    assert read_video(VideoFile(str(path)), Exactly((39,)), VideoSettings()).info.frames == 0
    assert time_video(VideoFile(str(path)), VideoSettings()).info.frames == 40
    assert inspect_video(VideoFile(str(path)), VideoSettings()).frames == 40


def test_results_of_a_check_are_used_unless_the_file_has_changed(tmp_path, monkeypatch):
    """Choosing a decoder reads all packets, and counting frames decodes all: minutes for a long video."""

    def searched(*given):
        raise AssertionError("this file was checked")

    path = write_video(tmp_path / "video.mkv")  # its header has no number of frames
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
    assert read_video(lying, Exactly((0,)), VideoSettings()).info.decoder == "pyav", "the header is still checked"


def test_torchcodec_reads_the_same_frames(tmp_path):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not load: {str(error)[:100]}")
    for name in ("plain.mp4", "open_gop.mp4", "hevc.mp4", "av1.mp4", "odd.webm"):
        path = write_video(tmp_path / name, **MADE[name][1])
        assert shown(read_frames(path, [31, 7, 7, 39, 0, 13], VideoSettings(decoder="torchcodec"))) == [31, 7, 7, 39, 0, 13]


def test_an_error_of_ffmpeg_is_a_sentence_without_its_number(tmp_path, monkeypatch):
    """An encrypted file has a list of frames, but its packets cannot be decoded."""

    def refuse(*_):
        raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input", "a.mp4")

    monkeypatch.setitem(decoders.READERS, "pyav", refuse)
    monkeypatch.setattr(stream, "_chunks", refuse)
    write_video(tmp_path / "a.mp4", 8)
    video, settings = VideoFile(str(tmp_path / "a.mp4")), VideoSettings(decoder="pyav")
    for read in (lambda: read_video(video, Everything(), settings), lambda: list(stream.stream_video(video, settings))):
        with pytest.raises(VideoError) as raised:
            read()
        assert raised.value.cause == "cannot be decoded: Invalid data found when processing input"
