"""Write an embedded data set into the cache: mp4 files and their lists, by several processes, whole or not at all."""

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
from pydantic import BaseModel, ConfigDict

from vmae_lab.utils.atomic_io import StorageError, atomic_write, fingerprint, make_folder, storing_in, write_json
from vmae_lab.utils.processes import parallel_map
from vmae_lab.utils.progress import Progress

FRAMES_A_SECOND = 12
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Job = tuple[Any, ...]  # the split and what else names a file, its number last


class WorldSettings(BaseModel):
    """Settings of an embedded data set. Subclasses have a field per split (its number of files), `side` and `seed`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefix: ClassVar[str]  # of the folder's name
    versions: ClassVar[dict[str, int]]  # of the renderers
    available: ClassVar[Collection[str]]  # sources that can be chosen

    sources: tuple[str, ...]

    def model_post_init(self, _context: object) -> None:
        unknown = [name for name in self.sources if name not in self.available]
        if unknown or not self.sources:
            raise ValueError(f"no motionworld source named {unknown}; sources are {', '.join(self.available)}")

    @property
    def fingerprint(self) -> str:
        """Hash of the data's content: equal settings give equal files."""
        return fingerprint(self.versions | self.model_dump(mode="json"))

    def jobs(self) -> list[Job]:
        """The split and number of every file, in order."""
        return [(split, index) for split in SPLITS for index in range(getattr(self, split))]


def cache_home() -> Path:
    """`$VMAE_LAB_HOME`, or `~/.cache/vmae_lab`."""
    return Path(os.environ.get("VMAE_LAB_HOME") or Path.home() / ".cache" / "vmae_lab")


def open_world(
    settings: WorldSettings,
    write_file: Callable[..., Any],
    write_lists: Callable[[Path, list[Job], list[Any]], None],
    pixels: int,
    processes: int,
    batch: int = 50,
) -> Path:
    """The folder of a data set, written first if it does not exist.

    `write_file(settings, folder, *job)` writes a file of at most `pixels` and returns its record; `write_lists` gets them all.
    The folder is renamed when it is complete: an interrupted writing resumes, and a second one waits. Raises StorageError.
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
        write_lists(unfinished, jobs, records)
        write_json(unfinished / "settings.json", settings.versions | settings.model_dump(mode="json"))
        with storing_in(home):
            os.replace(unfinished, folder)
    return folder


def _write_batch(write: Callable[..., Any], jobs: list[Job]) -> list[Any]:
    return [write(*job) for job in jobs]


def check_room(folder: Path, files: int, pixels: int) -> None:
    """Raise StorageError if the disk cannot hold files of so many pixels: 0.1 bytes per pixel of H.264, 3 of decoded clips."""
    needed = int(files * (pixels * 3.1 + 4096))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder} has {free >> 20} MiB free; motionworld needs about {needed >> 20} MiB. Set VMAE_LAB_HOME to another disk"
        )


def write_mp4(frames: np.ndarray, path: Path) -> None:
    """Write a clip, whole or not at all, unless it exists. Raises StorageError."""
    if path.exists():
        return
    with storing_in(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        encode_mp4(frames, temporary)


def encode_mp4(frames: np.ndarray, path: Path, rate: int = FRAMES_A_SECOND) -> None:
    """Write uint8 `(F, H, W, 3)` as H.264 in mp4, so that equal frames give equal bytes.

    This needs one encoder thread and `cpu-independent`: otherwise x264's choices depend on the alignment of its buffers.
    """
    options = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
