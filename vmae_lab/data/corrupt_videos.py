"""Videos that a training run could not read: set aside in a file, never tried again, replaced without favour."""

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
ATTEMPTS = 100  # draws for one place of the stream, before the data itself is in doubt
COLUMNS = ("index", "path", "codec", "cause")


class CorruptVideos:
    """The broken videos of one run, by their number in its list, shared by its processes through a file.

    A run that is resumed reads the file first. Without a file (a try-out) they are kept in this process alone.
    """

    def __init__(self, file: Path | None = None):
        self.file = file
        self._known: dict[int, VideoError] = {}
        self._read = 0  # bytes of the file that are known

    def __contains__(self, index: int) -> bool:
        self._reload()
        return index in self._known

    def __len__(self) -> int:
        self._reload()
        return len(self._known)

    def add(self, index: int, error: VideoError) -> None:
        """Set a video aside; once, also where two processes meet it at the same time."""
        if self.file is None:
            self._known[index] = error
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

    def error(self, index: int) -> VideoError:
        """Why a video was set aside."""
        self._reload()
        return self._known[index]

    def _reload(self) -> None:
        """Learn of what other processes have set aside: the file only grows."""
        if self.file is None or not self.file.exists() or self.file.stat().st_size == self._read:
            return
        data = self.file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1].decode("utf-8", "replace")  # a line that is being written is for later
        rows = csv.DictReader(io.StringIO(whole, newline=""))
        self._known = {int(row["index"]): VideoError(row["path"], row["cause"], row["codec"]) for row in rows}
        self._read = len(data)


def read_or_replace(order: Order, position: int, read: Callable[[int], T], corrupt_videos: CorruptVideos) -> tuple[int, T]:
    """What `read` gives for the sample at a position of the stream, and which sample that was.

    One that cannot be read is set aside, and its place goes to another of its source, by an order of its own in which every
    sample stands once an epoch. So the readable ones are seen equally often, and who stands in is a function of the seed and
    of which files are broken, not of the worker that met them. Raises VideoError where a hundred in a row cannot be read.
    """
    for attempt in range(ATTEMPTS):
        index = order.stand_in(position, attempt) if attempt else order[position]
        if index in corrupt_videos:
            continue
        try:
            return index, read(index)
        except VideoError as error:
            corrupt_videos.add(index, error)
    first = corrupt_videos.error(order[position])  # whichever worker or earlier run met it
    raise VideoError(
        first.path,
        f"{first.cause}. {ATTEMPTS} draws in a row gave no readable video; check the list with 'vmae-lab data check'",
        first.codec,
    )
