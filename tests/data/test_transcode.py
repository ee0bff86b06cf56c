"""Training copies have the frames of the originals at the same times, for every readable file."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from av.video.frame import PictureType
from made_videos import NO_VIDEOS, VIDEOS, drawn, shown, write_video

from vmae_lab.cli import main
from vmae_lab.data.decoding import VideoFile, VideoSettings, read_frames, read_video
from vmae_lab.data.decoding.decoders import SEEKING, _UnwantedFrames, open_video
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.frame_sampling import Exactly
from vmae_lab.data.transcode import FAILURES, JOURNAL, LIST, MANIFEST, TranscodeSettings, copy_names, transcode_list
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListError, read_list

SMALL = TranscodeSettings(short_side=32)


def times_of(path: Path) -> list[float]:
    """Return the times of all frames, relative to the first, from decoding in this process."""
    with av.open(str(path)) as video:
        times = [frame.time for frame in video.decode(video=0)]
    return [value - times[0] for value in times]


def copied(
    root: Path, out: Path, settings: TranscodeSettings = SMALL, labelled: bool = False, processes: int = 1
) -> pd.DataFrame:
    return transcode_list(read_list(".", root, labelled), settings, VideoSettings(), out, processes)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """Two classes: AVI, a rotated MP4, an odd size, a variable frame rate, and a broken file."""
    root = tmp_path_factory.mktemp("originals")
    for name in ("jump", "walk"):
        (root / name).mkdir()
    write_video(root / "jump" / "old.avi", 40, codec="mpeg4")
    write_video(root / "jump" / "turned.mp4", 40, display={"degrees": 90})
    write_video(root / "walk" / "odd.mkv", [drawn(n, 65, 47) for n in range(33)], codec="ffv1", pix_fmt="bgr0")
    with av.open(str(root / "walk" / "variable.mp4"), "w") as output:
        stream = output.add_stream("h264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pts, frame.time_base = 500 + 40 * number + 7 * number**2, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (root / "walk" / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(400))
    return root


@pytest.fixture(scope="module")
def copies(originals, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    out = tmp_path_factory.mktemp("copies")
    return copied(originals, out, labelled=True), out


def test_copies_have_the_frames_at_the_same_times(originals, copies):
    table, out = copies
    good = table[table.status == "ok"]
    assert len(good) == 4
    for row in good.itertuples():
        original, copy = times_of(originals / row.original), times_of(out / row.path)
        assert copy == pytest.approx(original, abs=1e-5), row.path
        assert row.frames == len(original)
        frames = read_frames(out / row.path)
        assert min(frames.shape[1:3]) <= 32
        assert not any(side % 2 for side in frames.shape[1:3])
        assert row.psnr > 25
        if "turned" not in row.path:
            assert shown(frames) == list(range(row.frames))


def test_copies_are_upright_and_read_by_the_fast_decoder(copies):
    table, out = copies
    sizes = {Path(row.path).stem: (row.width, row.height) for row in table.itertuples()}
    assert sizes["turned"] == (32, 44)
    assert sizes["old"] == (44, 32)
    for path in table[table.status == "ok"].path:
        with av.open(str(out / path)) as video:
            keys = [packet.is_keyframe for packet in video.demux(video=0) if packet.size]
            assert len(video.streams) == 1
        assert keys == [number % 16 == 0 for number in range(len(keys))]
        assert open_video(VideoFile(str(out / path)), VideoSettings())[1].decoder == "decord"


@pytest.mark.parametrize("stride", [1, 2, 4, 7])
def test_readers_leave_out_frames_of_a_copy_that_are_not_needed(copies, monkeypatch, stride):
    _, out = copies
    left_out, leave_out = [], _UnwantedFrames.leave_out
    monkeypatch.setattr(_UnwantedFrames, "leave_out", lambda *given: left_out.append(leave_out(*given)) or left_out[-1])
    listed = read_list(LIST, out, labelled=True)
    file = clips_of({"copies": (listed, "")}, VideoSettings()).file(listed.table.path.tolist().index("jump/old.mp4"))
    in_order = read_frames(file.path, settings=VideoSettings(decoder="pyav"))
    with av.open(file.path) as video:
        b_frames = [number for number, frame in enumerate(video.decode(video=0)) if frame.pict_type == PictureType.B]
    for first in range(stride):
        left_out.clear()
        wanted = tuple(range(first, 40, stride))
        read = read_video(file, Exactly(wanted), VideoSettings())
        assert read.info.decoder == SEEKING
        assert np.array_equal(read.frames, in_order[list(wanted)])
        # All unwanted B-frames up to the last wanted frame of each 16 from one key frame to the next.
        last = {number // 16: number for number in wanted}
        unwanted = [number for number in b_frames if number not in wanted and number < last[number // 16]]
        assert sum(left_out) >= len(unwanted)
        assert bool(unwanted) == any(left_out) == (stride > 1)


def test_the_list_keeps_labels_and_the_broken_file_is_reported(originals, copies):
    table, out = copies
    listed, before = read_list(LIST, out, labelled=True), read_list(".", originals, labelled=True)
    assert listed.classes == before.classes
    labels = {str(Path(path).with_suffix("")): label for path, label in zip(before.table.path, before.table.label, strict=True)}
    labels.pop("walk/broken")
    found = zip(listed.table.path, listed.table.label, strict=True)
    assert {str(Path(path).with_suffix("")): label for path, label in found} == labels
    assert (listed.table.decoder == SEEKING).all()
    failures = pd.read_csv(out / FAILURES)
    assert failures.path.tolist() == ["walk/broken.mp4"]
    assert failures.status.tolist() == ["failed"]
    assert failures.cause.str.len().min() > 0
    assert len(pd.read_csv(out / MANIFEST)) == len(table) == 5


def test_failed_videos_are_tried_again(originals, tmp_path):
    """The limits of decoding may have changed, or the file."""
    videos = read_list(".", originals, labelled=True)
    small = transcode_list(videos, SMALL, VideoSettings(max_pixels=1000), tmp_path, 1)
    assert (small.status == "failed").all()
    table = transcode_list(videos, SMALL, VideoSettings(), tmp_path, 1)
    assert table.status.tolist().count("ok") == 4
    assert pd.read_csv(tmp_path / FAILURES).path.tolist() == ["walk/broken.mp4"]


def test_finished_copies_are_kept_and_other_settings_refused(originals, copies, tmp_path):
    table, out = copies
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert copied(originals, out, labelled=True).equals(table)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == before
    with pytest.raises(ListError, match="short_side"):
        copied(originals, out, TranscodeSettings(short_side=64))
    with pytest.raises(ListError, match=r"turned\.mp4"):
        copied(originals, originals)


@pytest.mark.slow
def test_a_killed_command_continues_with_identical_bytes(originals, copies, tmp_path):
    """The command is killed after 1, 2 and 3 copies. One copy is then cut, as an unfinished write would leave it."""
    _, expected = copies
    command = [sys.executable, "-m", "vmae_lab", "data", "transcode", ".", str(tmp_path), "--root", str(originals)]
    command += ["--labelled", "--short-side", "32", "--processes", "1"]
    for finished in (1, 2, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(tmp_path.rglob("[!.]*.mp4"))) < finished and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = sorted(tmp_path.rglob("[!.]*.mp4"))
    done[0].write_bytes(done[0].read_bytes()[:-20])
    journal = tmp_path / JOURNAL
    journal.write_text(journal.read_text() + '{"key": "cut sho')
    copied(originals, tmp_path, labelled=True)
    names = {path.relative_to(expected) for path in expected.rglob("*.mp4")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.mp4")} == names
    for name in [*names, LIST, MANIFEST, FAILURES]:
        assert (tmp_path / name).read_bytes() == (expected / name).read_bytes(), name
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_processes_give_the_same_bytes_and_the_command_fails_for_a_broken_file(originals, copies, tmp_path, capsys):
    _, expected = copies
    options = ["--root", str(originals), "--labelled", "--short-side", "32", "--processes", "2"]
    assert main(["data", "transcode", ".", str(tmp_path), *options]) == 1
    assert LIST in capsys.readouterr().out
    for path in expected.rglob("*.mp4"):
        assert (tmp_path / path.relative_to(expected)).read_bytes() == path.read_bytes()


def test_pack_writes_shards_of_small_copies(originals, copies, tmp_path, capsys):
    _, expected = copies
    command = ["data", "pack", ".", str(tmp_path), "--root", str(originals), "--labelled", "--processes", "1"]
    assert main([*command, "--short-side", "33"]) == 2
    for _ in range(2):  # the second call finds the copies and the shards
        assert main([*command, "--short-side", "32"]) == 1, "a video is broken"
        assert "videos.csv" in capsys.readouterr().out
        packed = read_list(tmp_path / "videos.csv", tmp_path, labelled=True)
        assert len(packed) == 4
        assert (packed.table["bytes"] == packed.table["size"]).all(), "the results of the check are in the index"
        assert (packed.table.decoder == SEEKING).all()
        for row in packed.table.itertuples():
            data = (tmp_path / row.path).read_bytes()[row.offset : row.offset + row.size]
            assert data in [path.read_bytes() for path in expected.rglob("*.mp4")]


def test_copies_of_equal_names_keep_their_suffix():
    assert copy_names(["a/x.avi", "a/x.mkv", "./b/y.webm"]) == ["a/x.avi.mp4", "a/x.mkv.mp4", "b/y.mp4"]


def test_folders_of_frames_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("frames 1 12\n")
    with pytest.raises(ListError, match="frames"):
        transcode_list(read_list("list.txt", tmp_path), SMALL, VideoSettings(), tmp_path / "out")


@pytest.mark.slow
def test_every_real_video_is_copied_or_reported(tmp_path):
    """Every readable file of ../shared/videos has the same number of frames at the same times; broken ones are reported."""
    if not VIDEOS.is_dir():
        pytest.skip(NO_VIDEOS)
    with open(VIDEOS / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    groups: dict[str, str] = {}
    for row in rows:  # one file per scene or action of the labeled sets
        groups.setdefault(re.sub(r"utinteraction/\w+/(set._seq..).*|(weizmann4/\w+)/.*", r"\1\2", row["path"]), row["path"])
    bad = [f"bad/{path.name}" for path in sorted((VIDEOS / "bad").iterdir()) if path.is_file()]
    pd.DataFrame({"path": list(dict.fromkeys([*groups.values(), *bad]))}).to_csv(tmp_path / "list.csv", index=False)
    videos = read_list(tmp_path / "list.csv", VIDEOS)
    table = transcode_list(videos, TranscodeSettings(short_side=64), VideoSettings(), tmp_path / "out", 2)
    decoder = DecoderProcess(VideoSettings())
    for row in table.itertuples():
        inspection = decoder.inspect(VideoFile(str(VIDEOS / row.original)))
        if "too long" in row.cause:  # a name of 255 bytes leaves no room for that of a temporary file
            assert len(Path(row.original).name) > 240
            continue
        assert row.status == inspection.status, row.original
        if row.status == "ok":
            original, copy = times_of(VIDEOS / row.original), times_of(tmp_path / "out" / row.path)
            assert len(copy) == len(original) == inspection.frames, row.original
            assert np.abs(np.subtract(copy, original)).max() <= row.time_error_s + 1e-5, row.original
        else:
            assert row.cause == inspection.cause
    decoder.close()
    assert (table.status == "ok").sum() > 30
    # B-frames in AVI have times in the order of decoding, which are up to a frame off. One file is a joined recording.
    assert set(table[table.time_error_s > 0.05].original) == {"derived/res_change.ts"}
    assert all(path.endswith((".avi", ".ts")) for path in table[table.time_error_s > 1e-4].original)
