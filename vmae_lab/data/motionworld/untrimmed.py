"""Untrimmed videos of motionworld: long files with several actions and background, in ActivityNet's list format.

Actions are drawn independently of everything else: times, lengths, objects, positions and neighboring actions. So only the
motion inside a segment reveals its action. Shots also change during background, so that a cut does not announce an action.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.signal import lfilter

from vmae_lab.data.motionworld import motion
from vmae_lab.data.motionworld.motion import ACTIONS, SHIFT, SPEED_SPREAD, TURN
from vmae_lab.data.motionworld.sources import SOURCES, THINGS
from vmae_lab.data.motionworld.writer import FRAMES_A_SECOND, WorldSettings, open_world, write_mp4
from vmae_lab.utils.atomic_io import write_json
from vmae_lab.utils.seeding import numpy_generator

RENDERER_VERSION = 1  # part of the folder's name: increase it when a change here, in sources.py or motion.py changes pixels
Range = tuple[float, float]
BACKGROUNDS = ("still", "tremble", "drift")
SPLIT = 0.5  # probability that a long background is split into two kinds
SHOT_CHANGE, FADED = 0.5, 0.5  # probability that a piece starts a new shot, and that this shot fades in
RAMP = 3  # frames over which the speed changes between two pieces: a quarter of a second around the border
FADE = 5  # frames of a cross-fade around a border; odd, like RAMP, so that its middle is at the border
DRIFT = (0.2, 0.4)  # speed along each axis, relative to an action
TREMBLE = 0.6  # size of random steps, relative to an action
CHUNK = 1 << 16  # pixels rendered at a time: limits memory, and fits into the CPU's cache


class UntrimmedWorldSettings(WorldSettings):
    """Number and content of the untrimmed videos. Ranges are `(low, high)`."""

    prefix = "untrimmed"
    versions: ClassVar = {"untrimmed": RENDERER_VERSION}
    available = THINGS

    sources: tuple[str, ...] = ("digits", "sticks", "sprites")
    side: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the files, pixels")
    seconds: Range = Field((40.0, 60.0), description="length of a video")
    pace: float = Field(1.0, ge=0.25, le=10, description="speed relative to the clips of motionworld")
    action_seconds: Range = (1.5, 6.0)
    background_seconds: Range = Field((1.0, 4.0), description="between actions; the last one includes the rest of the video")
    empty: float = Field(0.05, ge=0, le=1, description="probability that a video has no action")
    train: int = Field(40, ge=1, description="videos")
    validation: int = Field(10, ge=1)
    test: int = Field(20, ge=1)
    seed: int = 0

    def model_post_init(self, _context: object) -> None:
        super().model_post_init(_context)
        for name, shortest in (("seconds", 1.0), ("action_seconds", 0.5), ("background_seconds", 0.5)):
            low, high = getattr(self, name)
            if not shortest <= low <= high <= 3600:
                raise ValueError(f"{name} is ({low:g}, {high:g}); expected {shortest:g} <= low <= high <= 3600")
        needed = _in_frames(self.action_seconds)[0] + 2 * _in_frames(self.background_seconds)[1]
        if _in_frames(self.seconds)[0] < needed:
            raise ValueError(
                f"the minimum of seconds is {self.seconds[0]:g}; an action between two backgrounds may need "
                f"{needed / FRAMES_A_SECOND:.4g} (the minimum of action_seconds plus twice the maximum of background_seconds)"
            )


@dataclass(frozen=True)
class Segment:
    """An action, or background (None), from frame `start` up to, not including, `end`."""

    start: int
    end: int
    action: str | None


@dataclass(frozen=True)
class Shot:
    """One object on one path, visible from frame `start` to the end of the path. It fades in over `fade` frames."""

    start: int
    fade: int
    source: str
    path: motion.Path


def open_untrimmed_world(settings: UntrimmedWorldSettings, processes: int = 1) -> Path:
    """Return a folder with `videos/<name>.mp4` and `annotations.json` in ActivityNet's layout.

    It is written first if necessary. Raises StorageError.
    """
    pixels = _in_frames(settings.seconds)[1] * settings.side**2
    # Small batches: a video takes as long as dozens of clips.
    return open_world(settings, _write_video, _write_annotations, pixels, processes, batch=2)


def render_untrimmed(settings: UntrimmedWorldSettings, split: str, index: int) -> tuple[np.ndarray, list[Segment]]:
    """Render a video: frames uint8 `(F, S, S, 3)` and its actions, a pure function of split, index and seed."""
    pieces, shots = plan_untrimmed(settings, split, index)
    frames = np.zeros((pieces[-1].end, settings.side, settings.side, 3), np.uint8)
    for number, shot in enumerate(shots):
        _render_shot(shot, frames, (settings.seed, f"untrimmed look {split}", index, number))
    return frames, [piece for piece in pieces if piece.action]


def plan_untrimmed(settings: UntrimmedWorldSettings, split: str, index: int) -> tuple[list[Segment], list[Shot]]:
    """Plan a video: segments that cover it (action None: background), and shots, which overlap during a cross-fade."""
    pieces = _pieces(settings, split, index)
    rng = numpy_generator(settings.seed, f"untrimmed shots {split}", index)
    changes = [0, *(n for n in range(1, len(pieces)) if rng.random() < SHOT_CHANGE), len(pieces)]
    fades = [0, *(FADE // 2 if rng.random() < FADED else 0 for _ in changes[1:-1]), 0]  # frames on each side of the border
    shots = []
    for number, (first, last) in enumerate(pairwise(changes)):
        lengths = [piece.end - piece.start for piece in pieces[first:last]]
        lengths[0] += fades[number]
        lengths[-1] += fades[number + 1]
        steps = [
            _steps(pieces[n].action, length, numpy_generator(settings.seed, f"untrimmed motion {split}", index, n))
            for n, length in enumerate(lengths, first)
        ]
        source = settings.sources[rng.integers(len(settings.sources))]
        path = _path(settings.pace * np.concatenate(steps), rng)
        shots.append(Shot(pieces[first].start - fades[number], 2 * fades[number], source, path))
    return pieces, shots


def _pieces(settings: UntrimmedWorldSettings, split: str, index: int) -> list[Segment]:
    """Return alternating background and actions. Actions have their own generator, so nothing else depends on them."""
    rng = numpy_generator(settings.seed, f"untrimmed times {split}", index)
    action_rng = numpy_generator(settings.seed, f"untrimmed actions {split}", index)
    empty = rng.random() < settings.empty
    shortest = _in_frames(settings.background_seconds)[0]
    pieces: list[Segment] = []
    start = 0
    for number, length in enumerate(_lengths(settings, rng)):
        end = start + length
        if number % 2 and not empty:
            pieces.append(Segment(start, end, ACTIONS[action_rng.integers(len(ACTIONS))]))
        elif length >= 2 * shortest and rng.random() < SPLIT:
            middle = int(rng.integers(start + shortest, end - shortest + 1))
            pieces += [Segment(start, middle, None), Segment(middle, end, None)]
        else:
            pieces.append(Segment(start, end, None))
        start = end
    return pieces


def _lengths(settings: UntrimmedWorldSettings, rng: np.random.Generator) -> list[int]:
    """Return the frames of background, action, background, and so on. The last action is shortened to fit."""
    (shortest, longest), pauses = _in_frames(settings.action_seconds), _in_frames(settings.background_seconds)
    left = int(rng.integers(*_in_frames(settings.seconds), endpoint=True))
    lengths = [int(rng.integers(*pauses, endpoint=True))]
    left -= lengths[0]
    while True:
        action, pause = rng.integers(shortest, longest, endpoint=True), rng.integers(*pauses, endpoint=True)
        action = min(action, left - pause)
        if action < shortest:
            lengths[-1] += left
            return lengths
        lengths += [int(action), int(pause)]
        left -= int(action + pause)


def _in_frames(seconds: Range) -> tuple[int, int]:
    return round(seconds[0] * FRAMES_A_SECOND), round(seconds[1] * FRAMES_A_SECOND)


def _steps(action: str | None, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the changes of x, y, angle and size phase between frames, `(F, 4)`, at pace 1."""
    if action is not None:
        return np.tile(rng.uniform(*SPEED_SPREAD) * motion.rates([action]), (frames, 1))
    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    if kind == "drift":  # diagonal, unlike any action
        across, down = SHIFT * rng.uniform(*DRIFT) * rng.choice((-1, 1), 2)
        return np.tile((across, down, 0.0, 0.0), (frames, 1))
    if kind == "tremble":  # a random walk around a point; not of the size, which would jump between largest and smallest
        offsets = lfilter([1.0], [1.0, -0.7], rng.standard_normal((frames, 4)), axis=0)
        return TREMBLE * np.array([SHIFT, SHIFT, TURN, 0.0]) * np.diff(offsets, axis=0, prepend=0)
    return np.zeros((frames, 4))


def _path(steps: np.ndarray, rng: np.random.Generator) -> motion.Path:
    """Return the path of steps `(F, 4)`, smoothed at borders, from a uniform start, so that all positions are uniform."""
    padded = np.pad(steps, ((RAMP // 2, RAMP // 2), (0, 0)), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, RAMP, axis=0).mean(-1)
    start = motion.Path(rng.random((1, 2)), rng.random(1) * 2 * np.pi, rng.random(1))
    return motion.displaced(start, np.concatenate([np.zeros((1, 4)), np.cumsum(smooth[:-1], axis=0)]))


def _render_shot(shot: Shot, frames: np.ndarray, look: tuple) -> None:
    """Draw a shot into the frames `(F, S, S, 3)` of its video. It fades in over the end of the previous shot."""
    total, side = len(shot.path.angle), frames.shape[1]
    weight = np.ones(total)
    weight[: shot.fade] = (np.arange(shot.fade) + 1) / FADE
    chunk = max(1, CHUNK // side**2)
    for begin in range(0, total, chunk):
        part = slice(begin, min(begin + chunk, total))
        path = motion.Path(shot.path.centre[part], shot.path.angle[part], shot.path.size[part])
        drawn = SOURCES[shot.source](path, side, numpy_generator(*look)) * 255  # the same look in every chunk
        if begin < shot.fade:
            before, new = frames[shot.start + part.start : shot.start + part.stop], weight[part, None, None, None]
            drawn = new * drawn + (1 - new) * before
        frames[shot.start + part.start : shot.start + part.stop] = drawn.round().clip(0, 255).astype(np.uint8)


def _write_video(settings: UntrimmedWorldSettings, folder: Path, split: str, index: int) -> tuple[str, dict[str, Any]]:
    """Write the file of a video. Return its name and its annotations."""
    name = f"{split}_{index:05d}"
    frames, segments = render_untrimmed(settings, split, index)
    write_mp4(frames, folder / "videos" / f"{name}.mp4")
    annotations = [
        {
            "segment": [segment.start / FRAMES_A_SECOND, segment.end / FRAMES_A_SECOND],
            "label": segment.action,
            "label_id": ACTIONS.index(segment.action),
        }
        for segment in segments
    ]
    duration = len(frames) / FRAMES_A_SECOND
    return name, {"subset": split, "duration": duration, "fps": FRAMES_A_SECOND, "annotations": annotations}


def _write_annotations(folder: Path, entries: list[tuple[str, dict[str, Any]]]) -> None:
    version = f"motionworld-untrimmed {RENDERER_VERSION}"
    write_json(folder / "annotations.json", {"version": version, "database": dict(entries)})
