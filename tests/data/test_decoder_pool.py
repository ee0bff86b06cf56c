"""Decoder processes: failures of a decoder do not affect this process."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import pytest
from failing_child import ANSWERS
from made_videos import shown, status_of, write_video

from vmae_lab.data.corrupt_videos import CorruptVideos, read_or_replace
from vmae_lab.data.decoding import DecoderUnavailable, VideoError, VideoFile, VideoSettings, pool, read_video
from vmae_lab.data.decoding.inspection import Inspection
from vmae_lab.data.decoding.messages import Malformed, parsed
from vmae_lab.data.decoding.pool import DecoderProcess, Decoders
from vmae_lab.data.frame_sampling import Dense, Everything, Exactly
from vmae_lab.data.samplers import EpochOrder

FAILURES = {
    "hang": "did not answer within 1 s",
    "loop": "did not answer within 1 s",
    "kill": "killed by SIGKILL",
    "abort": "killed by SIGABRT",
    "crash": "killed by SIGSEGV",
    "exit": "its decoder ended",
    "swallow_memory": "more memory than allowed",
}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFile:
    return VideoFile(str(write_video(tmp_path_factory.mktemp("videos") / "video.mp4", 20)))


FIRST = Exactly((0,))


@pytest.fixture
def failing(video, monkeypatch):
    """Return the video under a name that makes its decoder fail."""
    monkeypatch.setattr(pool, "CHILD", "failing_child")

    def named(how: str) -> VideoFile:
        path = Path(video.path).with_name(f"{how}.mp4")
        path.unlink(missing_ok=True)
        path.hardlink_to(video.path)
        return VideoFile(str(path))

    return named


@pytest.fixture(scope="module")
def patient():
    """A decoder process with a long time limit. Tests with a short limit start their own."""
    process = DecoderProcess(VideoSettings(timeout_s=20, memory_mib=512))
    yield process
    process.close()


def gone(pid: int, within: float = 5.0) -> bool:
    """Return whether a process ends `within` seconds. Zombies have ended."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("short_side", [None, 24])
def test_frames_equal_those_read_in_this_process(patient, video, short_side):
    for choose in (Everything(), Exactly((7, 3, 3)), Dense(16, 2, 0.5)):
        local, remote = (
            read(video, choose, *more, short_side) for read, more in ((read_video, [VideoSettings()]), (patient.read, []))
        )
        assert remote.info == local.info
        assert remote.indices == local.indices
        assert np.array_equal(remote.frames, local.frames)
        assert remote.frames.flags.writeable  # required by torch


def test_errors_are_complete_and_keep_the_process(patient, video):
    patient.read(video, FIRST)
    pid = patient.pid
    for bad, choose in ((VideoFile(video.path + "?"), Everything()), (video, Exactly((20,)))):
        with pytest.raises(VideoError) as local:
            read_video(bad, choose, VideoSettings())
        with pytest.raises(VideoError) as remote:
            patient.read(bad, choose)
        assert (remote.value.path, remote.value.cause, remote.value.codec) == (
            local.value.path,
            local.value.cause,
            local.value.codec,
        )
    assert patient.pid == pid


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_decoder_is_reported_and_replaced(video, failing, how):
    decoder = DecoderProcess(VideoSettings(timeout_s=1, memory_mib=512))
    decoder.read(video, FIRST)
    pid, start = decoder.pid, time.monotonic()
    with pytest.raises(VideoError, match=rf"{how}\.mp4\b.*{FAILURES[how]}"):
        decoder.read(failing(how), FIRST)
    assert time.monotonic() - start < 60
    assert how == "swallow_memory" or gone(pid, 0.1)
    assert shown(decoder.read(video, Exactly((11,))).frames) == [11]
    assert gone(pid, 0.1) == (decoder.pid != pid)
    last = decoder.pid
    decoder.close()
    assert gone(last, 0.1)


@pytest.mark.slow
def test_the_start_of_a_process_does_not_count_as_reading_time(video, failing):
    """Otherwise, the file after a crash could time out, or a hang would last a minute longer."""
    decoder = DecoderProcess(VideoSettings(timeout_s=0.5))
    for how in ("hang", "hang", ""):
        start = time.monotonic()
        if how:
            with pytest.raises(VideoError, match=r"within 0\.5 s"):
                decoder.read(failing(how), FIRST)
        else:
            decoder.read(video, FIRST)
        assert time.monotonic() - start < 50
    decoder.close()


def test_no_video_is_recorded_as_corrupt_if_no_decoder_starts(video, monkeypatch, tmp_path):
    """Otherwise, a machine without free memory would mark a hundred good videos as corrupt."""
    corrupt_videos = CorruptVideos(tmp_path / "corrupt.csv")
    monkeypatch.setattr(pool, "CHILD", "no.such.module")
    decoder = DecoderProcess(VideoSettings())
    with pytest.raises(DecoderUnavailable, match=r"could be started: .*No module named"):
        read_or_replace(EpochOrder(2, seed=0), 0, lambda index: decoder.read(video, Everything()), corrupt_videos)
    assert not corrupt_videos.errors
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(DecoderUnavailable, match="No such file"):
        list(Decoders(VideoSettings()).read_all([(video, Everything(), None)]))


def test_output_of_a_decoder_does_not_mix_with_answers(video, failing):
    decoder = DecoderProcess(VideoSettings())
    assert shown(decoder.read(failing("print"), FIRST).frames) == [0]
    assert shown(decoder.read(video, Exactly((5,))).frames) == [5]
    decoder.close()


@pytest.mark.slow
def test_failed_requests_do_not_affect_later_ones(video, failing):
    """The choice of frames fails, or the answer is not read. The next request must not get that answer."""
    decoder = DecoderProcess(VideoSettings())
    with pytest.raises(ZeroDivisionError):
        decoder.read(video, lambda frames: [frames // 0])
    assert shown(decoder.read(video, lambda frames: np.array([frames - 1])).frames) == [19]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        decoder.read(failing("nap"), FIRST)
    signal.signal(signal.SIGALRM, before)
    assert shown(decoder.read(video, Exactly((5,))).frames) == [5]
    decoder.close()


@pytest.mark.parametrize("how", ANSWERS)
def test_an_invalid_answer_is_an_error_of_that_file(failing, how, tmp_path, monkeypatch):
    """A file may control its decoder. Its answers must not run code, use memory or block this process."""
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    decoder = DecoderProcess(VideoSettings(timeout_s=60))
    memory, start = status_of(os.getpid(), "VmSize"), time.monotonic()
    with pytest.raises(VideoError, match=rf"{how}\.mp4.*invalid answer"):
        decoder.read(failing(how), FIRST)
    assert time.monotonic() - start < 60
    assert status_of(os.getpid(), "VmSize") - memory < 100
    assert not (tmp_path / "evil").exists()
    assert decoder.pid is None


@pytest.mark.slow
def test_unexpected_output_is_not_used_as_an_answer(video, failing):
    decoder = DecoderProcess(VideoSettings())
    assert shown(decoder.read(failing("surplus"), FIRST).frames) == [0]
    time.sleep(0.6)
    for number in (5, 6):
        assert shown(decoder.read(video, Exactly((number,))).frames) == [number]
    decoder.close()


@pytest.mark.slow
def test_a_stopped_decoder_times_out(video, monkeypatch):
    """A request may be larger than the buffer of a pipe, e.g. with the frame numbers of a long video."""
    decoder = DecoderProcess(VideoSettings(timeout_s=1))
    decoder.read(video, FIRST)
    os.kill(decoder.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(VideoError, match="did not answer within 1 s"):
        decoder.inspect(VideoFile("x" * 10**6))
    assert time.monotonic() - start < 60
    decoder.close()


def test_the_number_of_chosen_frames_is_limited(patient, video):
    """A header may announce billions of frames. Their numbers alone would fill the memory."""
    with pytest.raises(VideoError, match=r"memory_mib"):
        patient.read(video, lambda frames: range(10**12))
    assert shown(patient.read(video, Exactly((5,))).frames) == [5]


def test_names_that_are_not_utf_8_are_kept(patient, video):
    path = os.fsencode(video.path).replace(b"video.mp4", b"caf\xe9 \xff.mp4")
    Path(os.fsdecode(path)).unlink(missing_ok=True)
    os.link(video.path, path)
    odd = VideoFile(os.fsdecode(path))
    assert shown(patient.read(odd, Exactly((5,))).frames) == [5]
    assert patient.inspect(odd) == patient.inspect(video)
    assert patient.time(odd) == patient.time(video)
    with pytest.raises(VideoError) as caught:
        patient.read(odd, Exactly((20,)))
    assert caught.value.path == odd.path
    os.unlink(path)


@pytest.mark.parametrize(
    "fields", [{"surplus": 1}, {"frames": -1}, {"cause": 1}, {"bytes": True}, {"fps": float("inf")}, {"fps": float("nan")}]
)
def test_inspections_are_validated(fields):
    sound = asdict(Inspection("ok", frames=20, rotation=-90))
    assert parsed(json.dumps(["inspection", sound]).encode()) == ("inspection", Inspection("ok", frames=20, rotation=-90))
    with pytest.raises(Malformed):
        parsed(json.dumps(["inspection", {**sound, **fields}]).encode())


def test_paths_are_relative_to_the_current_folder(patient, video, monkeypatch):
    patient.read(video, FIRST)
    monkeypatch.chdir(Path(video.path).parent)
    assert shown(patient.read(VideoFile("video.mp4", "."), Exactly((5,))).frames) == [5]
    with pytest.raises(VideoError, match="path is empty"):
        patient.read(VideoFile(""), Exactly((5,)))


def test_map_keeps_the_order_and_yields_errors_in_place(video, failing):
    decoders = Decoders(VideoSettings(timeout_s=60), processes=2)
    wanted = [3, "missing", 5, "kill", *range(16)]
    others = {"missing": (VideoFile("/missing.mp4"), Everything(), None), "kill": (failing("kill"), FIRST, None)}
    requests = (others.get(name) or (video, Exactly((name,)), 24) for name in wanted)
    answers = list(decoders.read_all(requests))
    for name, answer in zip(wanted, answers, strict=True):
        if isinstance(name, int):
            assert shown(answer.frames) == [name]
        else:
            assert isinstance(answer, VideoError)
            assert ("SIGKILL" if name == "kill" else "no such file") in str(answer)
    pids = {decoder.pid for decoder in decoders._idle if decoder.pid}
    assert 1 <= len(pids) <= 2
    decoders.close()
    assert all(gone(pid, 0.1) for pid in pids)


def test_closing_a_map_does_not_wait_for_decoders(video, failing):
    decoders = Decoders(VideoSettings(timeout_s=600), processes=2)
    answers = decoders.read_all([(video, FIRST, None)] + [(failing("hang"), FIRST, None)] * 5)
    assert shown(next(answers).frames) == [0]
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 60
    assert shown(decoders.read(video, FIRST).frames) == [0]
    decoders.close()


def pid_of(decoders: Decoders, video: VideoFile) -> int:
    assert shown(decoders.read(video, Exactly((4,))).frames) == [4]
    return decoders._idle[0].pid


@pytest.mark.slow
def test_a_fork_and_a_pickled_copy_start_their_own_processes(video):
    decoders = Decoders(VideoSettings(timeout_s=60))
    own_pid = pid_of(decoders, video)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    fork = context.Process(target=lambda: queue.put(pid_of(decoders, video)))
    fork.start()
    forks = queue.get()
    fork.join(20)
    assert fork.exitcode == 0
    copy = pickle.loads(pickle.dumps(decoders))
    pickled = pid_of(copy, video)
    assert pid_of(decoders, video) == own_pid  # still running and in sync
    assert len({own_pid, forks, pickled}) == 3
    assert gone(forks)
    del copy
    assert gone(pickled)
    decoders.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "hang", "loop"])
def test_a_decoder_process_ends_with_its_parent(video, failing, how):
    script = f"""
from vmae_lab.data.decoding.pool import *
from vmae_lab.data.frame_sampling import Exactly
import vmae_lab.data.decoding.pool as pool
pool.CHILD = "failing_child"
decoder = DecoderProcess(VideoSettings(timeout_s=600))
decoder.read(VideoFile({video.path!r}), Exactly((0,)))
print(decoder.pid, flush=True)
decoder.read(VideoFile({(failing(how) if how else video).path!r}), Exactly((0,)))
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    assert psutil.pid_exists(pid)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone(pid)


@pytest.mark.slow
def test_many_files_leak_no_descriptors_and_no_memory(tmp_path):
    good = [
        write_video(tmp_path / name, 12, codec) for name, codec in (("a.mp4", "h264"), ("b.avi", "mpeg4"), ("c.ts", "h264"))
    ]
    data = good[0].read_bytes()
    broken = {"cut.mp4": data[: len(data) * 2 // 3], "head.mp4": data[:100], "text.mp4": b"text", "empty.mp4": b""}
    broken["overwritten.mp4"] = data[:400] + np.random.default_rng(0).bytes(len(data) - 1400) + data[-1000:]
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    files = [VideoFile(str(tmp_path / name)) for name in (*broken, "missing.mp4")] + [VideoFile(str(path)) for path in good]
    files += [VideoFile(str(path), offset=0, size=path.stat().st_size) for path in good]
    decoder = DecoderProcess(VideoSettings(timeout_s=60))
    failed, seen = 0, []
    for number in range(300):
        try:
            decoder.read(files[number % len(files)], Dense(16, 1, 0.5), 24)
        except VideoError:
            failed += 1
        if number >= 50:
            pid = decoder.pid
            seen.append((len(os.listdir(f"/proc/{pid}/fd")), status_of(pid, "VmRSS")))
    assert 100 <= failed <= 200
    assert max(files for files, _ in seen) == seen[0][0]
    assert max(memory for _, memory in seen) - seen[0][1] < 40
    decoder.close()
