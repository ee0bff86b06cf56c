"""Untrimmed videos: real files with correct annotations, in which only motion reveals actions and their times."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, chi2_contingency, chisquare, kruskal

from vmae_lab.data.decoding import read_frames
from vmae_lab.data.motionworld import motion
from vmae_lab.data.motionworld.motion import ACTIONS
from vmae_lab.data.motionworld.sources import SOURCES
from vmae_lab.data.motionworld.untrimmed import (
    FADE,
    RAMP,
    Segment,
    Shot,
    UntrimmedWorldSettings,
    open_untrimmed_world,
    plan_untrimmed,
    render_untrimmed,
)
from vmae_lab.evaluation.pixel_baselines import _ridge_accuracy
from vmae_lab.utils.atomic_io import read_json
from vmae_lab.utils.seeding import numpy_generator

SHORT = {"seconds": (5, 8), "action_seconds": (0.75, 2), "background_seconds": (0.5, 1)}
SMALL = UntrimmedWorldSettings(side=32, train=3, validation=1, test=2, empty=0.3, seed=2, **SHORT)
PLACES = [(split, index) for split in ("train", "validation", "test") for index in range(getattr(SMALL, split))]
Plan = tuple[list[Segment], list[Shot]]


@pytest.fixture(scope="module")
def folder(home) -> Path:
    return open_untrimmed_world(SMALL)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """Plans of many videos of the default length."""
    return [plan_untrimmed(UntrimmedWorldSettings(), "train", index) for index in range(150)]


def owner(shots: list[Shot], frame: int) -> Shot:
    """Return the shot of a frame outside of cross-fades."""
    return next(s for s in shots if s.start + s.fade <= frame < s.start + len(s.path.angle))


def steps(shot: Shot) -> np.ndarray:
    """Return changes of x, y, angle and size phase between frames, relative to steps of actions: `(F - 1, 4)`."""
    path = shot.path
    phases = np.concatenate([path.centre, path.angle[:, None] / (2 * np.pi), path.size[:, None]], axis=1)
    change = (np.diff(phases, axis=0) + 0.5) % 1 - 0.5
    return change / (motion.SHIFT, motion.SHIFT, motion.TURN / (2 * np.pi), motion.GROWTH)


def inner(piece: Segment, shots: list[Shot]) -> np.ndarray:
    """Return the steps inside a piece, without the ramps and fades at its ends."""
    shot = owner(shots, (piece.start + piece.end) // 2)
    return steps(shot)[piece.start + FADE // 2 - shot.start : piece.end - 1 - FADE // 2 - shot.start]


WAYS = np.array(
    [(-1, 0, 0, 0), (1, 0, 0, 0), (0, -1, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, -1, 0), (0, 0, 0, 1), (0, 0, 0, -1)]
)


@pytest.mark.slow
def test_annotations_match_the_files(folder):
    database = read_json(folder / "annotations.json")["database"]
    assert list(database) == sorted(f"{split}_{index:05d}" for split, index in PLACES)
    for split, index in PLACES:
        entry = database[f"{split}_{index:05d}"]
        frames, segments = render_untrimmed(SMALL, split, index)
        read = read_frames(folder / "videos" / f"{split}_{index:05d}.mp4")
        assert (entry["subset"], entry["fps"], entry["duration"] * 12) == (split, 12, pytest.approx(len(read)))
        assert np.abs(read.astype(int) - frames).mean() < 8, "H.264 changes frames only a little"
        assert len(entry["annotations"]) == len(segments)
        for row, segment in zip(entry["annotations"], segments, strict=True):
            assert np.allclose(np.array(row["segment"]) * 12, (segment.start, segment.end))
            assert row["label"] == segment.action == ACTIONS[row["label_id"]]
    counts = [len(entry["annotations"]) for entry in database.values()]
    assert min(counts) == 0 < max(counts), "there are videos with and without actions"


@pytest.mark.slow
def test_videos_are_deterministic(folder, tmp_path, monkeypatch):
    first, second = (render_untrimmed(SMALL, "train", 1) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    elsewhere = render_untrimmed(SMALL, "test", 1)[0]
    assert elsewhere.shape != first[0].shape or not np.array_equal(elsewhere, first[0])
    monkeypatch.setenv("VMAE_LAB_HOME", str(tmp_path))
    again = open_untrimmed_world(SMALL, processes=2)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == len(PLACES) + 2
    assert again.name == folder.name
    assert all((again / file).read_bytes() == (folder / file).read_bytes() for file in files)


def test_pieces_cover_the_video(plans):
    for pieces, _ in plans:
        assert 40 * 12 <= pieces[-1].end <= 60 * 12
        assert (pieces[0].start, pieces[0].action, pieces[-1].action) == (0, None, None)
        for piece, after in pairwise(pieces):
            assert piece.end == after.start
            assert not (piece.action and after.action)
        assert all(18 <= piece.end - piece.start <= 72 for piece in pieces if piece.action)
        assert all(piece.end - piece.start >= 12 for piece in pieces)
    done = [[piece.action for piece in pieces if piece.action] for pieces, _ in plans]
    assert np.median([len(set(actions)) for actions in done]) >= 4, "several classes per video"
    assert any(len(actions) > len(set(actions)) for actions in done), "and several instances of a class"


def test_shots_change_at_borders_of_pieces(plans):
    faded = []
    for pieces, shots in plans:
        borders = {piece.start for piece in pieces}
        assert (shots[0].start, shots[0].fade) == (0, 0)
        assert shots[-1].start + len(shots[-1].path.angle) == pieces[-1].end
        for before, shot in pairwise(shots):
            assert before.start + len(before.path.angle) == shot.start + shot.fade, "shots overlap during a cross-fade"
            assert shot.start + shot.fade // 2 in borders
            faded.append(shot.fade > 0)
    changes = np.mean([(len(shots) - 1) / (len(pieces) - 1) for pieces, shots in plans])
    assert 0.45 < changes < 0.55
    assert 0.45 < np.mean(faded) < 0.55


def test_segments_have_the_motion_of_their_action_and_background_has_none(plans):
    kinds = set()
    for pieces, shots in plans:
        for piece in pieces:
            moves = inner(piece, shots)
            if piece.action:
                speed = moves @ WAYS[ACTIONS.index(piece.action)]
                assert np.ptp(speed) < 1e-6
                assert 0.7 - 1e-6 <= speed[0] <= 1.3 + 1e-6
                assert np.allclose(moves, speed[:, None] * WAYS[ACTIONS.index(piece.action)])
                continue
            mean = np.abs(moves.mean(0))
            if np.ptp(moves, axis=0).max() > 1e-6:
                kinds.add("tremble")
                assert np.abs(moves.sum(0)).max() < 5, "it stays near its position"
            elif mean.max() > 1e-6:
                kinds.add("drift")
                assert (mean[:2] >= 0.2 - 1e-6).all()
                assert (mean[:2] <= 0.4 + 1e-6).all()
                assert (mean[2:] < 1e-6).all()
            else:
                kinds.add("still")
    assert kinds == {"still", "tremble", "drift"}


def test_motion_has_the_requested_pace():
    usual, fast = (plan_untrimmed(UntrimmedWorldSettings(pace=pace), "train", 3) for pace in (1.0, 3.0))
    assert usual[0] == fast[0]
    assert all(np.allclose(steps(b), 3 * steps(a), atol=1e-6) for a, b in zip(usual[1], fast[1], strict=True))


def test_speed_changes_symmetrically_around_a_border(plans):
    """The change is one third done in the step before the border, two thirds in the next, and then complete."""
    seen = 0
    for pieces, shots in plans:
        for before, piece in pairwise(pieces):
            shot = owner(shots, piece.start + FADE)
            at = piece.start - shot.start
            if not (
                piece.action and shot is owner(shots, piece.start - FADE) and np.ptp(inner(before, shots), axis=0).max() < 1e-6
            ):
                continue  # between two shots, or after trembling
            old, new = inner(before, shots)[-1], inner(piece, shots)[0]
            ramp = [old, (2 * old + new) / RAMP, (old + 2 * new) / RAMP, new]
            assert np.allclose(steps(shot)[at - 2 : at + 2], ramp, atol=1e-6)
            seen += 1
    assert seen > 50


@pytest.mark.parametrize("side", [16, 128])  # rendered in whole shots, and in chunks of four frames
def test_frames_show_the_shots_and_cross_fades(side):
    settings = SMALL.model_copy(update={"side": side, "empty": 0.0})
    frames, _ = render_untrimmed(settings, "train", 0)
    _, shots = plan_untrimmed(settings, "train", 0)
    assert {shot.fade for shot in shots} == {0, FADE - 1}, "this video has cuts and cross-fades"
    drawn = [
        SOURCES[s.source](s.path, side, numpy_generator(settings.seed, "untrimmed look train", 0, n))
        for n, s in enumerate(shots)
    ]
    expected = np.zeros(frames.shape)
    for shot, pictures in zip(shots, drawn, strict=True):
        weight = np.ones((len(pictures), 1, 1, 1))
        weight[: shot.fade, 0, 0, 0] = np.array([0.2, 0.4, 0.6, 0.8])[: shot.fade]
        span = slice(shot.start, shot.start + len(pictures))
        expected[span] = weight * pictures * 255 + (1 - weight) * expected[span]
    assert np.abs(frames - expected).max() <= 1.01, "equal up to rounding"


def test_the_share_of_empty_videos():
    def empty(share: float, videos: int = 300) -> int:
        settings = UntrimmedWorldSettings(empty=share, **SHORT)
        plans = (plan_untrimmed(settings, "test", index)[0] for index in range(videos))
        return sum(all(piece.action is None for piece in pieces) for pieces in plans)

    assert empty(0.0) == 0, "a short video has an action if it is not empty"
    assert empty(1.0, 20) == 20
    assert binomtest(empty(0.3), 300, 0.3).pvalue > 0.001


def test_the_background_of_a_video_without_actions_moves():
    frames, segments = render_untrimmed(SMALL.model_copy(update={"empty": 1.0}), "train", 0)
    assert segments == []
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) > 5


def test_actions_are_independent_of_everything_but_motion(plans):
    """Classes are equally frequent, and independent of source, neighbors, length, time, position and size (tests at 0.1%)."""
    rows = []
    for pieces, shots in plans:
        actions = [piece for piece in pieces if piece.action]
        for last, piece in pairwise([None, *actions]):
            shot = owner(shots, (piece.start + piece.end) // 2)
            frame = (piece.start + piece.end) // 2 - shot.start
            opens = shot.start + shot.fade >= piece.start
            rows.append(
                {
                    "action": ACTIONS.index(piece.action), "last": ACTIONS.index(last.action) if last else 8,
                    "source": list(SOURCES).index(shot.source), "fade": shot.fade, "opens": int(opens),
                    "length": piece.end - piece.start, "time": piece.start, "x": shot.path.centre[frame, 0],
                    "y": shot.path.centre[frame, 1], "angle": shot.path.angle[frame], "size": shot.path.size[frame],
                }
            )  # fmt: skip
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    action = columns.pop("action")
    assert chisquare(np.bincount(action, minlength=8)).pvalue > 0.001
    for name in ("last", "source", "fade", "opens"):
        values = columns.pop(name)
        table = [[np.sum((action == a) & (values == value)) for value in np.unique(values)] for a in range(8)]
        assert chi2_contingency(table).pvalue > 0.001, name
    for name, values in columns.items():
        assert kruskal(*(values[action == a] for a in range(8))).pvalue > 0.001, name


@pytest.mark.slow
def test_no_single_frame_reveals_the_action_to_a_linear_classifier():
    """The limit is the 99.9% quantile of chance. The same classifier can predict the source."""
    settings = UntrimmedWorldSettings(side=16, seconds=(20, 24), action_seconds=(0.5, 1.5), background_seconds=(0.5, 1.0))

    def middles(split: str, videos: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pixels, actions, sources = [], [], []
        for index in range(videos):
            frames, segments = render_untrimmed(settings, split, index)
            shots = plan_untrimmed(settings, split, index)[1]
            for segment in segments:
                middle = (segment.start + segment.end) // 2
                pixels.append(frames[middle, ::2, ::2].ravel() / 255)
                actions.append(ACTIONS.index(segment.action))
                sources.append(list(SOURCES).index(owner(shots, middle).source))
        return torch.from_numpy(np.array(pixels)), np.array(actions), np.array(sources)

    (x, y, source), (test_x, test_y, test_source) = middles("train", 60), middles("test", 40)
    limit = 100 * binom.ppf(0.999, len(test_y), 1 / len(ACTIONS)) / len(test_y)
    accuracy = _ridge_accuracy(x, y, test_x, test_y)
    assert accuracy <= limit
    assert _ridge_accuracy(x, source, test_x, test_source) > 40, "chance is one third"


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"sources": ("camera",)}, r"sources \['camera'\]; choose from sprites, digits, sticks"),
        ({"sources": ()}, "choose from sprites"),
        ({"seconds": (60, 40)}, r"seconds is \(60, 40\); expected 1 <= low <= high"),
        ({"action_seconds": (3, 2)}, r"action_seconds is \(3, 2\)"),
        ({"background_seconds": (0.1, 2)}, r"background_seconds is \(0.1, 2\); expected 0.5 <= low"),
        ({"seconds": (9, 20)}, r"minimum of seconds is 9; an action between two backgrounds may need 9.5"),
        ({"pace": 0.1}, "greater than or equal to 0.25"),
        ({"empty": 1.5}, "less than or equal to 1"),
        ({"test": 0}, "greater than or equal to 1"),
        ({"speed": 2}, "Extra inputs are not permitted"),
    ],
)
def test_invalid_settings_are_refused(wrong, cause):
    with pytest.raises(ValueError, match=cause):
        UntrimmedWorldSettings(**wrong)


def test_the_fingerprint_depends_on_the_settings():
    names = {UntrimmedWorldSettings(**changes).fingerprint for changes in ({}, {"pace": 2}, {"seed": 1}, {"empty": 0})}
    assert len(names) == 4
    assert UntrimmedWorldSettings(seconds=(40, 60)).fingerprint == UntrimmedWorldSettings().fingerprint
