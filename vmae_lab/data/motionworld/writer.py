"""Writing of embedded data sets into the cache: mp4 files and their lists, in several processes."""

import os
import shutil
from collections.abc import Callable, Collection
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, Literal

import av
import numpy as np
from filelock import FileLock

from vmae_lab.utils.atomic_io import StorageError, atomic_write, fingerprint, make_folder, storing_in, write_json
from vmae_lab.utils.processes import parallel_map
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.settings import Settings

FRAMES_A_SECOND = 12
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Job = tuple[Any, ...]  # identifies a file: the split first, its number last


class WorldSettings(Settings):
    """Base class of the settings of an embedded data set.

    Subclasses have a field per split (its number of files), `side` and `seed`.
    """

    prefix: ClassVar[str]  # of the folder's name
    versions: ClassVar[dict[str, int]]  # of the renderers
    available: ClassVar[Collection[str]]  # allowed sources

    sources: tuple[str, ...]

    def model_post_init(self, _context: object) -> None:
        unknown = [name for name in self.sources if name not in self.available]
        if unknown or not self.sources:
            raise ValueError(f"unknown motionworld sources {unknown}; choose from {', '.join(self.available)}")

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the data set. Equal settings give equal files."""
        return fingerprint(self.versions | self.model_dump(mode="json"))

    def jobs(self) -> list[Job]:
        """Return the split and number of every file, in order."""
        return [(split, index) for split in SPLITS for index in range(getattr(self, split))]


def cache_home() -> Path:
    """Return `$VMAE_LAB_HOME`, or `~/.cache/vmae_lab`."""
    return Path(os.environ.get("VMAE_LAB_HOME") or Path.home() / ".cache" / "vmae_lab")


def open_world(
    settings: WorldSettings,
    write_file: Callable[..., Any],
    write_lists: Callable[[Path, list[Any]], None],
    pixels: int,
    processes: int,
    batch: int = 50,
) -> Path:
    """Return the folder of a data set. It is written first if it does not exist.

    `write_file(settings, folder, *job)` writes a file of at most `pixels` and returns its record. `write_lists` gets all
    records. The folder gets its final name when it is complete. Interrupted writing resumes; a second process waits. Raises
    StorageError.
    """
    home = make_folder(cache_home())
    folder = home / f"{settings.prefix}-{settings.fingerprint}"
    with FileLock(home / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        unfinished, jobs, records = make_folder(home / f"{folder.name}.partial"), settings.jobs(), list[Any]()
        check_room(unfinished, len(jobs), pixels)
        batches = [jobs[start : start + batch] for start in range(0, len(jobs), batch)]
        write = partial(write_file, settings, unfinished)
        with parallel_map(processes) as map_batches, Progress(total=len(jobs), desc=f"writing to {home}", unit="clips") as bar:
            for written in map_batches(_write_batch, repeat(write), batches):
                records += written
                bar.update(len(written))
        write_lists(unfinished, records)
        write_json(unfinished / "settings.json", settings.versions | settings.model_dump(mode="json"))
        with storing_in(home):
            os.replace(unfinished, folder)
    return folder


def _write_batch(write: Callable[..., Any], jobs: list[Job]) -> list[Any]:
    return [write(*job) for job in jobs]


def check_room(folder: Path, files: int, pixels: int) -> None:
    """Raise StorageError if the disk is too small: H.264 needs 0.1 bytes per pixel, decoded clips 3."""
    needed = int(files * (pixels * 3.1 + 4096))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder} has {free >> 20} MiB free; motionworld needs about {needed >> 20} MiB. Set VMAE_LAB_HOME to another disk"
        )


def write_mp4(frames: np.ndarray, path: Path) -> None:
    """Write a clip atomically, unless it exists. Raises StorageError."""
    if path.exists():
        return
    with storing_in(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        encode_mp4(frames, temporary)


def encode_mp4(frames: np.ndarray, path: Path, rate: int = FRAMES_A_SECOND) -> None:
    """Write uint8 `(F, H, W, 3)` as H.264 in mp4. Equal frames give equal bytes.

    This needs one encoder thread and `cpu-independent`, because x264's choices otherwise depend on the alignment of buffers.
    """
    options = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
