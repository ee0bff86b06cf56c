"""Frame sampling: which frames of a video make a clip. A sampler maps the number of frames to frame indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from vmae_lab.utils.counts import counted


@dataclass(frozen=True)
class Dense:
    """`clip_frames` frames, `stride` apart. `position` in [0, 1) selects among the possible starts.

    If the video is too short, the last sampled frame is repeated, as in the official code. Raises ValueError if there are no
    frames.
    """

    clip_frames: int
    stride: int
    position: float

    def __call__(self, frames: int) -> Sequence[int]:
        if frames < 1:
            raise ValueError("the video has no frames")
        span = (self.clip_frames - 1) * self.stride + 1
        if frames < span:
            reached = range(0, frames, self.stride)
            return [*reached, *[reached[-1]] * (self.clip_frames - len(reached))]
        start = int(self.position * (frames - span + 1))
        return range(start, start + span, self.stride)


@dataclass(frozen=True)
class DenseViews:
    """`views` dense windows, one after the other, spread evenly over a video as in the official test protocol.

    The protocol takes every `stride`-th frame, n frames in all, and repeats the last one if n is less than `clip_frames`.
    Window m starts at frame `int(m * (n - clip_frames) / (views - 1))` of these. So the first window starts at the start of the
    video, and the last one ends less than a stride before its end. The protocol does not define a single window; the middle is
    used.
    """

    clip_frames: int
    stride: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        reached = range(0, frames, self.stride)
        if self.views == 1:
            return Dense(self.clip_frames, self.stride, 0.5)(frames)
        if len(reached) <= self.clip_frames:
            return [*Dense(self.clip_frames, self.stride, 0.0)(frames)] * self.views
        step = (len(reached) - self.clip_frames) / (self.views - 1)
        starts = [int(view * step) for view in range(self.views)]
        return [frame for start in starts for frame in reached[start : start + self.clip_frames]]


@dataclass(frozen=True)
class Sparse:
    """One frame from each of equal segments of the whole video, at `positions[i]` in [0, 1) of segment i.

    If a video has fewer frames than segments, some frames are repeated.
    """

    positions: tuple[float, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if frames < 1:
            raise ValueError("the video has no frames")
        return [int((segment + position) * frames / len(self.positions)) for segment, position in enumerate(self.positions)]


@dataclass(frozen=True)
class SparseViews:
    """`views` sparse clips, one after the other. View v is at v / views of each segment; a single view is in the middle."""

    clip_frames: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        positions = [0.5] if self.views == 1 else [view / self.views for view in range(self.views)]
        return [frame for position in positions for frame in Sparse((position,) * self.clip_frames)(frames)]


@dataclass(frozen=True)
class Around:
    """`clip_frames` frames, `step` apart (may be fractional). Frame number `clip_frames // 2` is at `centre`.

    Positions outside the video give its first or last frame, as in the official code.
    """

    centre: float
    clip_frames: int
    step: float

    def __call__(self, frames: int) -> Sequence[int]:
        offsets = ((i - self.clip_frames // 2) * self.step for i in range(self.clip_frames))
        return [min(max(nearest(self.centre + offset), 0), frames - 1) for offset in offsets]


def nearest(position: float) -> int:
    """Round a position to a frame index, halves up. `round` rounds halves to even numbers, which would repeat frames."""
    return floor(position + 0.5)


@dataclass(frozen=True)
class Stretch:
    """At most `length` frames from `start` on. Raises IndexError if there are none."""

    start: int
    length: int

    def __call__(self, frames: int) -> Sequence[int]:
        if self.start >= frames:
            raise IndexError(f"the video has {counted(frames, 'frame')}, but frames from {self.start} on were requested")
        return range(self.start, min(self.start + self.length, frames))


@dataclass(frozen=True)
class Exactly:
    """The frames at `indices`. Raises IndexError if the video is shorter."""

    indices: tuple[int, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if not all(0 <= index < frames for index in self.indices):
            low, high = min(self.indices), max(self.indices)
            raise IndexError(f"the video has {counted(frames, 'frame')}, but frames {low} to {high} were requested")
        return self.indices


@dataclass(frozen=True)
class Everything:
    """All frames."""

    def __call__(self, frames: int) -> Sequence[int]:
        return range(frames)
