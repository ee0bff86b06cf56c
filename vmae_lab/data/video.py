"""The only room that knows a video decoder: count frames, read frames, say what is wrong."""

from collections.abc import Sequence
from pathlib import Path

import decord
import numpy as np


class VideoError(ValueError):
    """A file that cannot be decoded: names the file and the cause."""


def open_video(path: str | Path) -> decord.VideoReader:
    """A decord reader with one thread. Open it in the process that reads: a reader used after a fork hangs."""
    if not Path(path).is_file():
        raise VideoError(f"no such video file: {path}")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) == 0:
            raise VideoError(f"{path} has no frames")
    except (RuntimeError, decord.DECORDError) as error:
        raise VideoError(f"cannot open {path} as a video: {error}") from error
    return reader


def read_frames(path: str | Path, indices: Sequence[int] | None = None) -> np.ndarray:
    """Frames at `indices`, or all of them: uint8 `(T, H, W, 3)`, RGB. Raises VideoError."""
    reader = open_video(path)
    wanted = range(len(reader)) if indices is None else indices
    if len(wanted) and not 0 <= min(wanted) <= max(wanted) < len(reader):
        raise VideoError(f"{path} has {len(reader)} frames; frames {min(wanted)} to {max(wanted)} were asked for")
    try:
        return reader.get_batch(list(wanted)).asnumpy()
    except (RuntimeError, decord.DECORDError) as error:
        raise VideoError(f"cannot decode {path}: {error}") from error
