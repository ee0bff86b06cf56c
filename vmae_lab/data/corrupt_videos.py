"""Videos that a training run could not read. They are recorded, skipped, and replaced by videos of the same source."""

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
ATTEMPTS = 100  # videos that are tried for one position of the stream before the run stops
COLUMNS = ("index", "path", "codec", "cause")


class CorruptVideos:
    """The unreadable videos of a run.

    Processes and resumed runs share them in a csv file. Without a file, they are stored in this process only.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._errors: dict[int, VideoError] = {}
        self._size = 0  # bytes of the file when it was last read

    @property
    def errors(self) -> dict[int, VideoError]:
        """Index in the list -> error. The file is read again if it has grown."""
        if self.file is not None and self.file.exists() and self.file.stat().st_size != self._size:
            data = self.file.read_bytes()
            complete = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")  # another process may be writing the last line
            rows = csv.DictReader(io.StringIO(complete, newline=""))
            self._errors = {int(row["index"]): VideoError(row["path"], row["cause"], row["codec"]) for row in rows}
            self._size = len(data)
        return self._errors

    def add(self, index: int, error: VideoError) -> None:
        """Record an unreadable video. Two processes that add it at the same time write one row."""
        if self.file is None:
            self._errors[index] = error
            return
        with FileLock(self.file.with_name(f".{self.file.name}.lock")):
            if index in self.errors:
                return
            text = io.StringIO()
            rows = csv.writer(text)
            if not self.file.exists():
                rows.writerow(COLUMNS)
            rows.writerow([index, error.path, error.codec, error.cause])
            with open(self.file, "ab") as file:
                file.write(readable(text.getvalue()).encode())


def read_or_replace(order: Order, position: int, read: Callable[[int], T], corrupt_videos: CorruptVideos) -> tuple[int, T]:
    """Return the index of the sample at a position, and the result of `read`. An unreadable sample is replaced.

    A replacement is of the same source. Replacements are drawn from their own epochs, so that readable samples are used equally
    often. The choice depends on the seed and on the broken files, not on the worker. Raises VideoError if 100 draws in a row
    are unreadable.
    """
    for attempt in range(ATTEMPTS):
        index = order.stand_in(position, attempt) if attempt else order[position]
        if index in corrupt_videos.errors:
            continue
        try:
            return index, read(index)
        except VideoError as error:
            corrupt_videos.add(index, error)
    first = corrupt_videos.errors[order[position]]  # recorded, so every worker reports the same error
    raise VideoError(
        first.path,
        f"{first.cause}. {ATTEMPTS} draws in a row were unreadable; check the list with 'vmae-lab data check'",
        first.codec,
    )
