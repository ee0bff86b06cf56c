"""Which frames of a video make a clip. Each class is called with a video's number of frames and returns frame indices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor


def dense_window(frames: int, clip_frames: int, stride: int, place: float) -> Sequence[int]:
    """Return `clip_frames` indices, `stride` apart, at `place` in [0, 1) of the possible starts.

    A video that is too short gives its frames at that stride, and repeats the last of them, as in the official code. Raises
    ValueError if there are no frames.
    """
    if frames < 1:
        raise ValueError("there are no frames to choose from")
    span = (clip_frames - 1) * stride + 1
    if frames < span:
        reached = range(0, frames, stride)
        return [*reached, *[reached[-1]] * (clip_frames - len(reached))]
    start = int(place * (frames - span + 1))
    return range(start, start + span, stride)


@dataclass(frozen=True)
class Dense:
    """A dense window."""

    clip_frames: int
    stride: int
    place: float

    def __call__(self, frames: int) -> Sequence[int]:
        return dense_window(frames, self.clip_frames, self.stride, self.place)


@dataclass(frozen=True)
class DenseViews:
    """`views` dense windows, one after the other, spread evenly over a video as in the official test protocol.

    The protocol takes every `stride`-th frame from the first on, n of them, repeats the last if n is less than `clip_frames`,
    and starts window m at number `int(m * (n - clip_frames) / (views - 1))` of these. So the first window starts with the video
    and the last ends with it, but for less than a stride. The protocol does not define a single window: the middle one is used.
    """

    clip_frames: int
    stride: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        reached = range(0, frames, self.stride)
        if self.views == 1:
            return dense_window(frames, self.clip_frames, self.stride, 0.5)
        if len(reached) <= self.clip_frames:
            return [*dense_window(frames, self.clip_frames, self.stride, 0.0)] * self.views
        step = (len(reached) - self.clip_frames) / (self.views - 1)
        starts = [int(view * step) for view in range(self.views)]
        return [frame for start in starts for frame in reached[start : start + self.clip_frames]]


@dataclass(frozen=True)
class Sparse:
    """One frame from each of equal segments of the whole video, at `places[i]` in [0, 1) of segment i.

    If a video has fewer frames than segments, some frames are repeated.
    """

    places: tuple[float, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if frames < 1:
            raise ValueError("there are no frames to choose from")
        return [int((segment + place) * frames / len(self.places)) for segment, place in enumerate(self.places)]


@dataclass(frozen=True)
class SparseViews:
    """`views` sparse choices, one after the other. View v is at v / views of each segment, a single view in its middle."""

    clip_frames: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        places = [0.5] if self.views == 1 else [view / self.views for view in range(self.views)]
        return [frame for place in places for frame in Sparse((place,) * self.clip_frames)(frames)]


@dataclass(frozen=True)
class Around:
    """`clip_frames` frames, `step` apart (which may be a fraction), of which number `clip_frames // 2` is at `centre`.

    Positions outside of the video give its first or last frame, as in the official code.
    """

    centre: float
    clip_frames: int
    step: float

    def __call__(self, frames: int) -> Sequence[int]:
        offsets = ((i - self.clip_frames // 2) * self.step for i in range(self.clip_frames))
        return [min(max(nearest(self.centre + offset), 0), frames - 1) for offset in offsets]


def nearest(position: float) -> int:
    """Round a position to a frame index, halves upward: `round` prefers even numbers, and would repeat frames."""
    return floor(position + 0.5)


@dataclass(frozen=True)
class Stretch:
    """At most `length` frames from `start` on. Raises IndexError if there are none."""

    start: int
    length: int

    def __call__(self, frames: int) -> Sequence[int]:
        if self.start >= frames:
            raise IndexError(f"there are {frames} frames, but frames from {self.start} on were requested")
        return range(self.start, min(self.start + self.length, frames))


@dataclass(frozen=True)
class Exactly:
    """The frames at `indices`. Raises IndexError if the video is shorter."""

    indices: tuple[int, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if not all(0 <= index < frames for index in self.indices):
            low, high = min(self.indices), max(self.indices)
            raise IndexError(f"there are {frames} frames, but frames {low} to {high} were requested")
        return self.indices


@dataclass(frozen=True)
class Everything:
    """All frames."""

    def __call__(self, frames: int) -> Sequence[int]:
        return range(frames)
