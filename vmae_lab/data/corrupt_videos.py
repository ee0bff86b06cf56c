"""Videos that a training run could not read: recorded in a file, never tried again, and replaced by others of their source."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.samplers import Order
from vmae_lab.utils.atomic_io import readable

T = TypeVar("T")
ATTEMPTS = 100  # draws for one position of the stream before the run stops
COLUMNS = ("index", "path", "codec", "cause")


class CorruptVideos:
    """The unreadable videos of a run, by their index in its list. Processes and resumed runs share them through a csv file.

    Without a file they are kept in this process only.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._errors: dict[int, VideoError] = {}
        self._size = 0  # of the file when it was read

    def __contains__(self, index: int) -> bool:
        self._reload()
        return index in self._errors

    def __len__(self) -> int:
        self._reload()
        return len(self._errors)

    def error(self, index: int) -> VideoError:
        """Why a video could not be read."""
        self._reload()
        return self._errors[index]

    def add(self, index: int, error: VideoError) -> None:
        """Record a video, once, even if two processes meet it at the same time."""
        if self.file is None:
            self._errors[index] = error
            return
        with FileLock(self.file.with_name(f".{self.file.name}.lock")):
            if index in self:
                return
            text = io.StringIO()
            rows = csv.writer(text)
            if not self.file.exists():
                rows.writerow(COLUMNS)
            rows.writerow([index, error.path, error.codec, error.cause])
            with open(self.file, "ab") as file:
                file.write(readable(text.getvalue()).encode())

    def _reload(self) -> None:
        """Read the file again if other processes have added to it."""
        if self.file is None or not self.file.exists() or self.file.stat().st_size == self._size:
            return
        data = self.file.read_bytes()
        complete = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")  # another process may be writing the last line
        rows = csv.DictReader(io.StringIO(complete, newline=""))
        self._errors = {int(row["index"]): VideoError(row["path"], row["cause"], row["codec"]) for row in rows}
        self._size = len(data)


def read_or_replace(order: Order, position: int, read: Callable[[int], T], corrupt_videos: CorruptVideos) -> tuple[int, T]:
    """The sample at a position of the stream, or a replacement if it is unreadable, and what `read` returns for it.

    A replacement is of the same source and comes from an order of its own, in which every sample is once per epoch. So readable
    samples are seen equally often, and the choice depends on the seed and on which files are broken, not on the worker that met
    them. Raises VideoError if a hundred draws in a row are unreadable.
    """
    for attempt in range(ATTEMPTS):
        index = order.stand_in(position, attempt) if attempt else order[position]
        if index in corrupt_videos:
            continue
        try:
            return index, read(index)
        except VideoError as error:
            corrupt_videos.add(index, error)
    first = corrupt_videos.error(order[position])  # the same error, whichever worker or earlier run met it
    raise VideoError(
        first.path,
        f"{first.cause}. {ATTEMPTS} draws in a row gave no readable video; check the list with 'vmae-lab data check'",
        first.codec,
    )
