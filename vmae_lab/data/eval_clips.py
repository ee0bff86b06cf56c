"""Clips for evaluation: the middle of each video. Unreadable videos are not replaced: they stop the evaluation."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vmae_lab.data.dataset import Clips
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.transforms import centre_crop
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.shapes import Side, short_side_for

BATCH = 32  # clips per forward pass
FIX_VIDEOS = (
    "Fix them, use the list that 'vmae-lab data check' writes, or set evaluate.missing to 'skip' to evaluate without them"
)
FIX_KEY_FRAMES = "Fix the videos, or exclude these key frames"
Load = Callable[[Dataset, int], Iterator[Any]]  # a dataset and its length -> its items in order, e.g. from loader workers


class MissingVideos(UserError, RuntimeError):
    """Some evaluation videos are unreadable. Averaging over the rest would change the metric, so evaluation stops.

    `failed`: row -> error. `total`: the number of evaluated items. `what`: their kind, e.g. "videos".
    """

    exit_status = 1

    def __init__(self, failed: Mapping[int, VideoError], total: int, remedy: str = FIX_VIDEOS, what: str = "videos"):
        self.failed, self.total, self.remedy, self.what = dict(failed), total, remedy, what
        causes = Counter(str(error) for error in failed.values())
        lines = [f"{cause} ({count} {what})" if count > 1 else cause for cause, count in causes.items()]
        lines = [*lines[:20], f"and {len(lines) - 20} more"] if len(lines) > 20 else lines
        shown = "\n  ".join(lines)
        super().__init__(f"{len(failed)} of {total} {what} cannot be read, so evaluation stopped:\n  {shown}\n{remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingVideos, (self.failed, self.total, self.remedy, self.what)


def read_videos(
    clips: Clips, rows: Sequence[int], choose: Choose, short_side: int | None, finish: Callable[[Tensor], Tensor],
    load: Load | None = None,
) -> Iterator[Tensor | VideoError]:  # fmt: skip
    """Yield what `finish` makes of the frames of several videos, in order, or the VideoError of an unreadable one.

    By default, `clips.videos` reads them, and this process does the rest. With `load`, both are done where it gets its items.
    """
    if load:
        yield from load(_Videos(clips, rows, choose, short_side, finish), len(rows))
        return
    for video in clips.videos(rows, choose, short_side):
        yield video if isinstance(video, VideoError) else finish(video)


def all_readable(
    rows: Sequence[int], videos: Iterable[Tensor | VideoError], total: int, remedy: str = FIX_VIDEOS, what: str = "videos"
) -> Iterator[tuple[int, Tensor]]:
    """Yield each row and its video. After the first unreadable video, nothing is yielded and the others are only checked.

    At the end, raises MissingVideos with all unreadable videos.
    """
    failed: dict[int, VideoError] = {}
    for row, video in zip(rows, videos, strict=True):
        if isinstance(video, VideoError):
            failed[row] = video
        elif not failed:
            yield row, video
    if failed:
        raise MissingVideos(failed, total, remedy, what)


@dataclass(frozen=True)
class _Videos(Dataset):
    """The videos of `read_videos`, one per item."""

    clips: Clips
    rows: Sequence[int]
    choose: Choose
    short_side: int | None
    finish: Callable[[Tensor], Tensor]

    def __getitem__(self, position: int) -> Tensor | VideoError:
        try:
            return self.finish(self.clips.video(self.rows[position], self.choose, self.short_side))
        except VideoError as error:
            return error


def middle_clips(clips: Clips, rows: Sequence[int], frames: int, stride: int, side: Side) -> Tensor:
    """Return the center-cropped middle window of some videos: uint8 `(B, C, T, height, width)`. Raises MissingVideos."""
    return torch.cat(list(evaluated_clips(clips, rows, frames, stride, side)))


def evaluated_clips(
    clips: Clips, rows: Sequence[int], frames: int, stride: int, side: Side, batch: int = BATCH, choose: Choose | None = None,
    load: Load | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield batches of center-cropped clips: uint8 `(B, C, T, height, width)`. By default, `choose` takes the middle window.

    Unreadable videos: see `all_readable`. `load`: see `read_videos`.
    """
    crop = partial(centre_crop, side=side)
    videos = read_videos(clips, rows, choose or Dense(frames, stride, 0.5), short_side_for(side), crop, load)
    read = all_readable(rows, videos, len(rows))
    while cropped := [video for _, video in islice(read, batch)]:
        yield torch.stack(cropped)


def readable(
    clips: Clips, rows: Sequence[int], frames: int, stride: int, side: Side, load: Load | None = None
) -> tuple[list[int], MissingVideos | None]:
    """Return the rows with a readable middle window, and the error of the others or None. Reads every video."""
    try:
        for _ in evaluated_clips(clips, rows, frames, stride, side, load=load):
            pass
    except MissingVideos as missing:
        return [row for row in rows if row not in missing.failed], missing
    return list(rows), None


def batches_of(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Return batches of `size` rows, in order. The last batch may be smaller."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
