"""Clips as they are evaluated: the middle of each video, none replaced, and none left out without a word."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vmae_lab.data.dataset import Clips
from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.transforms import centre_crop
from vmae_lab.utils.errors import UserError

FIX_VIDEOS = "Fix them, use the list that 'vmae-lab data check' wrote, or set evaluate.missing to 'skip' to leave them out"
FIX_KEY_FRAMES = "Fix the videos, or exclude these key frames"


class MissingVideos(UserError, RuntimeError):
    """Videos of an evaluation that cannot be read, all of them: an average over the others is another number.

    `what` is counted, where that is not videos but several of each.
    """

    exit_status = 1

    def __init__(self, failed: Mapping[int, VideoError], total: int, remedy: str = FIX_VIDEOS, what: str = "videos"):
        self.failed, self.total, self.remedy, self.what = dict(failed), total, remedy, what
        causes = Counter(str(error) for error in failed.values())
        told = [f"{cause} ({count} {what})" if count > 1 else cause for cause, count in causes.items()]
        shown = "\n  ".join(told[:20]) + (f"\n  and {len(told) - 20} more" if len(told) > 20 else "")
        super().__init__(f"{len(failed)} of {total} {what} cannot be read, so there is no result:\n  {shown}\n{remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingVideos, (self.failed, self.total, self.remedy, self.what)


def middle_clips(clips: Clips, rows: Sequence[int], frames: int, stride: int, side: int) -> Tensor:
    """The middle window of some videos, its largest central square: uint8 `(B, C, T, side, side)`. Raises MissingVideos."""
    return torch.cat(list(evaluated_clips(clips, rows, frames, stride, side)))


def evaluated_clips(
    clips: Clips, rows: Sequence[int], frames: int, stride: int, side: int, batch: int = 32, choose: Choose | None = None
) -> Iterator[Tensor]:  # fmt: skip
    """What is evaluated, in batches: the middle window's central square of each row, uint8 `(B, C, T, side, side)`.

    `choose` takes other frames than the middle window's.

    What follows a video that cannot be read is only tried, and after the last one MissingVideos is raised, naming all: so no
    average comes of it.
    """
    failed: dict[int, VideoError] = {}
    for some in batches_of(rows, batch):
        read = list(clips.videos(some, choose or Dense(frames, stride, 0.5), side))
        failed |= {row: video for row, video in zip(some, read, strict=True) if isinstance(video, VideoError)}
        if not failed:
            yield torch.stack([centre_crop(video, side) for video in read if not isinstance(video, VideoError)])
    if failed:
        raise MissingVideos(failed, len(rows))


def readable(clips: Clips, rows: Sequence[int], frames: int, stride: int, side: int) -> tuple[list[int], MissingVideos | None]:
    """Those of some rows whose middle window can be read, and what is missing, where something is. It reads them all."""
    try:
        for _ in evaluated_clips(clips, rows, frames, stride, side):
            pass
    except MissingVideos as missing:
        return [row for row in rows if row not in missing.failed], missing
    return list(rows), None


def batches_of(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Rows in order, `size` at a time, the last batch smaller: every row once."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
