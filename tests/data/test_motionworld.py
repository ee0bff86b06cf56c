"""The embedded data set: real, deterministic files whose classes differ only in motion."""

import multiprocessing
import shutil
from itertools import product

import numpy as np
import psutil
import pytest
from scipy.stats import binom, ks_2samp, kstest

from vmae_lab.data.dataset import DataSettings, load_clips
from vmae_lab.data.decoding import read_frames
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings, open_motionworld
from vmae_lab.data.motionworld.dataset import render_clip
from vmae_lab.data.motionworld.motion import draw_path
from vmae_lab.evaluation.pixel_baselines import single_frame_accuracies
from vmae_lab.utils.atomic_io import StorageError
from vmae_lab.utils.seeding import numpy_generator

PATTERNS = ("plaids", "dark_plaids", "coarse_plaids", "striped_plaids", "photographs")
SMALL = MotionworldSettings(side=32, frames=6, train=2, validation=1, test=1)


@pytest.fixture(scope="module")
def written(home):
    return open_motionworld(SMALL)


@pytest.mark.slow
def test_every_clip_is_a_readable_file(written):
    folder, records = written
    assert len(records) == SMALL.clips() == 5 * len(ACTIONS) * 4
    assert len({record.path for record in records}) == len(records)
    for record in records[::7]:
        frames = read_frames(folder / record.path)
        assert frames.shape == (6, 32, 32, 3)
        assert record.frames == 6


@pytest.mark.slow
def test_files_contain_the_rendered_frames(written):
    """H.264 changes frames only a little. Swapped channels or shifted frames would change them more."""
    folder, records = written
    record = next(r for r in records if r.source == "sprites" and r.split == "train")
    frames, _ = render_clip(record.source, record.action, SMALL, "train", 0)
    assert np.abs(read_frames(folder / record.path).astype(int) - frames).mean() < 8


@pytest.mark.slow
def test_equal_settings_give_equal_bytes(written, tmp_path, monkeypatch):
    folder, records = written
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path))
    other, again = open_motionworld(SMALL, processes=2)
    assert again == records
    assert all((other / r.path).read_bytes() == (folder / r.path).read_bytes() for r in records)


@pytest.mark.slow
def test_the_box_contains_the_object():
    """If the object is completely inside the frame, all bright pixels are in its box."""
    settings = MotionworldSettings(side=64, frames=8)
    seen = 0
    for source in ("sprites", "sticks", "digits"):
        for index in range(40):
            frames, boxes = render_clip(source, "right", settings, "train", index)
            inside = ((boxes > 0) & (boxes < 1)).all(1)  # no part of it has wrapped
            for frame, (x1, y1, x2, y2) in zip(frames[inside], boxes[inside] * 64, strict=True):
                rows, columns = np.nonzero(frame.max(-1) > 140)
                assert x1 - 1 <= columns.min() <= columns.max() <= x2 + 1
                assert y1 - 1 <= rows.min() <= rows.max() <= y2 + 1
                seen += 1
    assert seen > 20


@pytest.mark.parametrize("action", ACTIONS)
def test_position_angle_and_size_are_uniform_in_every_frame(action):
    """Kolmogorov-Smirnov tests on the first, middle and last frame of 400 clips."""
    paths = [draw_path(action, 16, numpy_generator(0, "test", ACTIONS.index(action), i)) for i in range(400)]
    for frame in (0, 8, 15):
        for values in (
            [p.centre[frame, 0] for p in paths],
            [p.centre[frame, 1] for p in paths],
            [p.angle[frame] / (2 * np.pi) for p in paths],
            [p.size[frame] for p in paths],
        ):
            assert kstest(values, "uniform").pvalue > 1e-4  # 96 tests: about 1% of random seeds would fail


@pytest.mark.slow
@pytest.mark.parametrize("sources", [("digits", "sticks", "sprites"), *((name,) for name in PATTERNS)], ids="+".join)
def test_no_single_frame_beats_chance_with_a_linear_classifier(sources, home):
    """On decoded files. The limit is the 99.9% quantile of chance for the best frame."""
    each = 20 if len(sources) > 1 else 40
    data = DataSettings(
        motionworld=MotionworldSettings(sources=sources, side=32, frames=8, train=each, test=each * 2 // 3, validation=1),
        resident_side=24,
    )
    train, held_out = load_clips(data, "train"), load_clips(data, "test")
    accuracies = single_frame_accuracies(train, held_out, side=16)
    limit = 100 * binom.ppf(1 - 0.001 / len(accuracies), len(held_out), 1 / len(ACTIONS)) / len(held_out)
    assert max(accuracies) <= limit


@pytest.mark.parametrize("source", [*PATTERNS[:-1], pytest.param(PATTERNS[-1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("action", ACTIONS)
def test_first_and_last_frames_of_a_pattern_have_equal_statistics(source, action):
    """Brightness, contrast and fineness of 150 clips are distributed alike in the first and last of 24 frames."""
    settings = MotionworldSettings(sources=(source,), side=32, frames=24)
    clips = np.stack([render_clip(source, action, settings, "train", index)[0][[0, -1]] for index in range(150)]) / 255.0
    for feature in (
        clips.mean((2, 3, 4)),
        clips.std((2, 3)).mean(-1),
        np.abs(np.diff(clips, axis=2)).mean((2, 3, 4)),
        np.abs(np.diff(clips, axis=3)).mean((2, 3, 4)),
    ):
        assert ks_2samp(feature[:, 0], feature[:, 1]).pvalue > 1e-4  # 160 tests: about 2% of random seeds would fail


def test_plaids_move_according_to_their_action():
    """Shifting the last frame by the path gives the first. Zooming in makes the pattern coarser."""
    settings = MotionworldSettings(sources=("plaids",), side=40, frames=3)
    for action, axis, sign in (("right", 1, 1), ("left", 1, -1), ("down", 0, 1), ("up", 0, -1)):
        for index in range(5):
            frames, _ = render_clip("plaids", action, settings, "train", index)
            brightness = frames.mean(-1)
            shifts = range(-5, 6)
            errors = [np.abs(np.roll(brightness[2], -shift, axis=axis) - brightness[0])[5:-5, 5:-5].mean() for shift in shifts]
            assert sign * shifts[int(np.argmin(errors))] in (1, 2, 3, 4)  # 2 frames x 40 pixels x 0.035 x (0.7 to 1.3)


def test_patterns_change_smoothly():
    """No change between adjacent frames is much larger than the typical one, even when a path wraps."""
    settings = MotionworldSettings(sources=PATTERNS, side=32, frames=48)
    for source, action in product(PATTERNS, ACTIONS):
        frames, _ = render_clip(source, action, settings, "train", 0)
        change = np.abs(np.diff(frames.astype(float), axis=0)).mean((1, 2, 3))
        assert change.max() < 4 * np.median(change), (source, action)


@pytest.mark.slow
def test_interrupted_writing_resumes(tmp_path, monkeypatch):
    """After a kill, there is no folder with the final name, and the next call completes the data."""
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path))
    process = multiprocessing.get_context("spawn").Process(target=open_motionworld, args=(SMALL, 2))
    process.start()
    partial = tmp_path / f"motionworld-{SMALL.fingerprint}.partial"
    while process.is_alive() and len(list(partial.rglob("*.mp4"))) < 5:
        process.join(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    _, left = psutil.wait_procs(workers, timeout=20)
    assert len(workers) >= 2
    assert not left, "its workers end with it"
    assert not (tmp_path / f"motionworld-{SMALL.fingerprint}").exists()
    folder, records = open_motionworld(SMALL)
    assert all(len(read_frames(folder / record.path)) == 6 for record in records)
    assert not list(folder.rglob("*.tmp"))


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"file/cache.*VMAE_LAB_HOME"):
        open_motionworld(SMALL)


def test_a_small_disk_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"MiB free.*VMAE_LAB_HOME"):
        open_motionworld(SMALL)
    assert not list(tmp_path.rglob("*.mp4"))


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"'spites'.*sprites"):
        MotionworldSettings(sources=("spites",))
