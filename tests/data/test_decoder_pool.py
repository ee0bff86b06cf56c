"""Decoding in another process: what a decoder does to itself, no run feels."""

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
    "kill": "ended by SIGKILL",
    "abort": "ended by SIGABRT",
    "crash": "ended by SIGSEGV",
    "exit": "its decoder ended",
    "swallow_memory": "more memory than it may",
}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFile:
    return VideoFile(str(write_video(tmp_path_factory.mktemp("videos") / "video.mp4", 20)))


FIRST = Exactly((0,))


@pytest.fixture
def failing(video, monkeypatch):
    """The same video under a name by which its decoder fails."""
    monkeypatch.setattr(pool, "CHILD", "failing_child")

    def named(how: str) -> VideoFile:
        path = Path(video.path).with_name(f"{how}.mp4")
        path.unlink(missing_ok=True)
        path.hardlink_to(video.path)
        return VideoFile(str(path))

    return named


@pytest.fixture(scope="module")
def patient():
    """A process with time enough; reads that are cut off have one of their own."""
    process = DecoderProcess(VideoSettings(timeout_s=20, memory_mib=512))
    yield process
    process.close()


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends within so many seconds; one that nobody waits for has ended too."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("short_side", [None, 24])
def test_frames_are_those_read_in_this_process(patient, video, short_side):
    for choose in (Everything(), Exactly((7, 3, 3)), Dense(16, 2, 0.5)):
        here, there = (
            read(video, choose, *more, short_side) for read, more in ((read_video, [VideoSettings()]), (patient.read, []))
        )
        assert there.info == here.info
        assert there.indices == here.indices
        assert np.array_equal(there.frames, here.frames)
        assert there.frames.flags.writeable  # as torch wants it


def test_errors_come_back_whole_and_cost_no_process(patient, video):
    patient.read(video, FIRST)
    pid = patient.pid
    for bad, choose in ((VideoFile(video.path + "?"), Everything()), (video, Exactly((20,)))):
        with pytest.raises(VideoError) as here:
            read_video(bad, choose, VideoSettings())
        with pytest.raises(VideoError) as there:
            patient.read(bad, choose)
        assert (there.value.path, there.value.cause, there.value.codec) == (here.value.path, here.value.cause, here.value.codec)
    assert patient.pid == pid


@pytest.mark.slow
@pytest.mark.parametrize("how", FAILURES)
def test_a_decoder_that_fails_is_told_and_replaced(video, failing, how):
    decoder = DecoderProcess(VideoSettings(timeout_s=1, memory_mib=512))
    decoder.read(video, FIRST)
    pid, start = decoder.pid, time.monotonic()
    with pytest.raises(VideoError, match=rf"{how}\.mp4\b.*{FAILURES[how]}"):
        decoder.read(failing(how), FIRST)
    assert time.monotonic() - start < 4
    assert how == "swallow_memory" or gone(pid, 0.1)
    assert shown(decoder.read(video, Exactly((11,))).frames) == [11]
    assert gone(pid, 0.1) == (decoder.pid != pid)
    last = decoder.pid
    decoder.close()
    assert gone(last, 0.1)


@pytest.mark.slow
def test_the_time_a_process_takes_to_start_is_not_the_files(video, failing):
    """Else a file behind one that crashed the decoder would be blamed, or a hang take a minute longer."""
    decoder = DecoderProcess(VideoSettings(timeout_s=0.5))
    for how in ("hang", "hang", ""):
        start = time.monotonic()
        if how:
            with pytest.raises(VideoError, match=r"within 0\.5 s"):
                decoder.read(failing(how), FIRST)
        else:
            decoder.read(video, FIRST)
        assert time.monotonic() - start < 20
    decoder.close()


def test_no_video_is_blamed_where_no_decoder_starts(video, monkeypatch, tmp_path):
    """Else a machine out of memory would set a hundred sound videos aside for the whole of the run."""
    corrupt_videos = CorruptVideos(tmp_path / "quarantine.csv")
    monkeypatch.setattr(pool, "CHILD", "no.such.module")
    decoder = DecoderProcess(VideoSettings())
    with pytest.raises(DecoderUnavailable, match=r"could be started: .*No module named"):
        read_or_replace(EpochOrder(2, seed=0), 0, lambda index: decoder.read(video, Everything()), corrupt_videos)
    assert len(corrupt_videos) == 0
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(DecoderUnavailable, match="No such file"):
        list(Decoders(VideoSettings()).read_all([(video, Everything(), None)]))


def test_what_a_decoder_prints_does_not_come_between_the_answers(video, failing):
    decoder = DecoderProcess(VideoSettings())
    assert shown(decoder.read(failing("print"), FIRST).frames) == [0]
    assert shown(decoder.read(video, Exactly((5,))).frames) == [5]
    decoder.close()


@pytest.mark.slow
def test_what_is_asked_for_can_be_wrong_without_harm(video, failing):
    """A choice that fails, and an answer that was not waited for: it must not be taken for the next one."""
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
def test_an_answer_that_makes_no_sense_is_an_error_of_that_file(failing, how, tmp_path, monkeypatch):
    """A file may take over its decoder. What that answers runs no code here, takes no memory and is not waited for."""
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "evil"))
    decoder = DecoderProcess(VideoSettings(timeout_s=20))
    memory, start = status_of(os.getpid(), "VmSize"), time.monotonic()
    with pytest.raises(VideoError, match=rf"{how}\.mp4.*makes no sense"):
        decoder.read(failing(how), FIRST)
    assert time.monotonic() - start < 20
    assert status_of(os.getpid(), "VmSize") - memory < 100
    assert not (tmp_path / "evil").exists()
    assert decoder.pid is None


@pytest.mark.slow
def test_what_a_decoder_says_unasked_is_not_taken_for_an_answer(video, failing):
    decoder = DecoderProcess(VideoSettings())
    assert shown(decoder.read(failing("surplus"), FIRST).frames) == [0]
    time.sleep(0.6)
    for number in (5, 6):
        assert shown(decoder.read(video, Exactly((number,))).frames) == [number]
    decoder.close()


@pytest.mark.slow
def test_a_decoder_that_reads_no_request_is_not_waited_for(video, monkeypatch):
    """A request may be longer than a pipe holds: the frames of a film, by number."""
    decoder = DecoderProcess(VideoSettings(timeout_s=1))
    decoder.read(video, FIRST)
    os.kill(decoder.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(VideoError, match="did not answer within 1 s"):
        decoder.inspect(VideoFile("x" * 10**6))
    assert time.monotonic() - start < 10
    decoder.close()


def test_no_more_frames_are_chosen_than_fit(patient, video):
    """A header may promise billions of frames; their numbers alone would fill the memory."""
    with pytest.raises(VideoError, match=r"memory_mib"):
        patient.read(video, lambda frames: range(10**12))
    assert shown(patient.read(video, Exactly((5,))).frames) == [5]


def test_names_that_are_not_utf_8_come_back_as_they_are(patient, video):
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
def test_what_an_inspection_says_is_checked(fields):
    sound = asdict(Inspection("ok", frames=20, rotation=-90))
    assert parsed(json.dumps(["inspection", sound]).encode()) == ("inspection", Inspection("ok", frames=20, rotation=-90))
    with pytest.raises(Malformed):
        parsed(json.dumps(["inspection", {**sound, **fields}]).encode())


def test_paths_are_relative_to_the_folder_of_the_moment(patient, video, monkeypatch):
    patient.read(video, FIRST)
    monkeypatch.chdir(Path(video.path).parent)
    assert shown(patient.read(VideoFile("video.mp4", "."), Exactly((5,))).frames) == [5]
    with pytest.raises(VideoError, match="empty path"):
        patient.read(VideoFile(""), Exactly((5,)))


def test_map_keeps_order_and_hands_failures_over_in_place(video, failing):
    decoders = Decoders(VideoSettings(timeout_s=20), processes=2)
    wanted = [3, "missing", 5, "kill", *range(16)]
    others = {"missing": (VideoFile("/missing.mp4"), Everything(), None), "kill": (failing("kill"), FIRST, None)}
    requests = (others.get(one) or (video, Exactly((one,)), 24) for one in wanted)
    answers = list(decoders.read_all(requests))
    for one, answer in zip(wanted, answers, strict=True):
        if isinstance(one, int):
            assert shown(answer.frames) == [one]
        else:
            assert isinstance(answer, VideoError)
            assert ("SIGKILL" if one == "kill" else "no such file") in str(answer)
    pids = {decoder.pid for decoder in decoders._idle if decoder.pid}
    assert 1 <= len(pids) <= 2
    decoders.close()
    assert all(gone(pid, 0.1) for pid in pids)


def test_a_map_that_is_left_waits_for_no_decoder(video, failing):
    decoders = Decoders(VideoSettings(timeout_s=600), processes=2)
    answers = decoders.read_all([(video, FIRST, None)] + [(failing("hang"), FIRST, None)] * 5)
    assert shown(next(answers).frames) == [0]
    start = time.monotonic()
    answers.close()
    assert time.monotonic() - start < 10
    assert shown(decoders.read(video, FIRST).frames) == [0]
    decoders.close()


def pid_of(decoders: Decoders, video: VideoFile) -> int:
    assert shown(decoders.read(video, Exactly((4,))).frames) == [4]
    return decoders._idle[0].pid


@pytest.mark.slow
def test_a_fork_and_a_pickled_copy_have_processes_of_their_own(video):
    decoders = Decoders(VideoSettings(timeout_s=20))
    mine = pid_of(decoders, video)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    fork = context.Process(target=lambda: queue.put(pid_of(decoders, video)))
    fork.start()
    forks = queue.get()
    fork.join(20)
    assert fork.exitcode == 0
    copy = pickle.loads(pickle.dumps(decoders))
    pickled = pid_of(copy, video)
    assert pid_of(decoders, video) == mine  # still there, and still in step
    assert len({mine, forks, pickled}) == 3
    assert gone(forks)
    del copy
    assert gone(pickled)
    decoders.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "hang", "loop"])
def test_a_process_ends_with_the_one_that_started_it(video, failing, how):
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
def test_many_files_leave_nothing_open_and_no_memory_taken(tmp_path):
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
    decoder = DecoderProcess(VideoSettings(timeout_s=20))
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
