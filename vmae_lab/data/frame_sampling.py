"""Which frames of a video make a clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor


def dense_window(frames: int, clip_frames: int, stride: int, place: float) -> Sequence[int]:
    """A window of `clip_frames` frames, `stride` apart, at `place` in [0, 1) of the room there is.

    A video that is too short gives what it has at that stride, and then the last of these frames again and again, as in
    the official code. Raises ValueError where there are no frames.
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
    """A dense window, to be placed when the video's length is known: frames a video has -> frames of the clip."""

    clip_frames: int
    stride: int
    place: float

    def __call__(self, frames: int) -> Sequence[int]:
        return dense_window(frames, self.clip_frames, self.stride, self.place)


@dataclass(frozen=True)
class DenseViews:
    """`views` dense windows one after the other, spread evenly over a video as the official test protocol places them.

    The protocol takes every `stride`-th frame from the first on, n of them, the last again and again where n is less than
    `clip_frames`, and begins window m at number `int(m * (n - clip_frames) / (views - 1))` of these: the first begins with the
    video, and the last ends with it but for less than a stride. A single window is not defined there: the middle one.

    Frames a video has -> `views * clip_frames` frames. Raises ValueError where there are no frames.
    """

    clip_frames: int
    stride: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        reached = range(0, frames, self.stride)
        if self.views == 1:
            return list(dense_window(frames, self.clip_frames, self.stride, 0.5))
        if len(reached) <= self.clip_frames:
            return [*dense_window(frames, self.clip_frames, self.stride, 0.0)] * self.views
        step = (len(reached) - self.clip_frames) / (self.views - 1)
        starts = [int(view * step) for view in range(self.views)]
        return [frame for start in starts for frame in reached[start : start + self.clip_frames]]


@dataclass(frozen=True)
class SparseViews:
    """`views` sparse choices one after the other: view v takes the frame at v / views of each segment; one: its middle."""

    clip_frames: int
    views: int

    def __call__(self, frames: int) -> Sequence[int]:
        places = [0.5] if self.views == 1 else [view / self.views for view in range(self.views)]
        return [frame for place in places for frame in Sparse((place,) * self.clip_frames)(frames)]


@dataclass(frozen=True)
class Sparse:
    """One frame from each of equal segments of the whole video, `places[i]` in [0, 1) of the way into segment i.

    A video with fewer frames than segments shows some of them more than once.
    """

    places: tuple[float, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if frames < 1:
            raise ValueError("there are no frames to choose from")
        return [int((segment + place) * frames / len(self.places)) for segment, place in enumerate(self.places)]


def nearest(place: float) -> int:
    """The frame next to a place between frames, halves upward: `round` goes to even ones, and would show some twice."""
    return floor(place + 0.5)


@dataclass(frozen=True)
class Around:
    """Frames `step` apart (a fraction where rates differ), of which number `clip_frames // 2` is the key frame `centre`.

    Where the video ends or has not begun its last or first frame stands in, as in the official code.
    """

    centre: float
    clip_frames: int
    step: float

    def __call__(self, frames: int) -> Sequence[int]:
        offsets = ((place - self.clip_frames // 2) * self.step for place in range(self.clip_frames))
        return [min(max(nearest(self.centre + offset), 0), frames - 1) for offset in offsets]


@dataclass(frozen=True)
class Stretch:
    """Frames from `start` on, `length` of them or as many as there are left. Raises IndexError where none is left."""

    start: int
    length: int

    def __call__(self, frames: int) -> Sequence[int]:
        if self.start >= frames:
            raise IndexError(f"there are {frames} frames; those from {self.start} on were asked for")
        return range(self.start, min(self.start + self.length, frames))


@dataclass(frozen=True)
class Exactly:
    """Frames by number. Raises IndexError where the video is shorter."""

    indices: tuple[int, ...]

    def __call__(self, frames: int) -> Sequence[int]:
        if not all(0 <= index < frames for index in self.indices):
            low, high = min(self.indices), max(self.indices)
            raise IndexError(f"there are {frames} frames; frames {low} to {high} were asked for")
        return self.indices


@dataclass(frozen=True)
class Everything:
    """Every frame."""

    def __call__(self, frames: int) -> Sequence[int]:
        return range(frames)
