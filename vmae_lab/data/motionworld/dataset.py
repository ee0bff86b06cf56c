"""Write motionworld once as real mp4 files, and read back what each of them holds."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

import av
import numpy as np
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.motionworld import sources
from vmae_lab.data.motionworld.motion import ACTIONS, draw_path
from vmae_lab.data.motionworld.sources import SOURCES
from vmae_lab.utils.atomic_io import StorageError, atomic_write, fingerprint, make_folder, storing_in, write_json, write_text
from vmae_lab.utils.processes import worker_pool
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.seeding import numpy_generator

RENDERER_VERSION = 2  # part of the folder's name: raise it when a change to the renderers changes pixels
FRAMES_A_SECOND = 12
Split = Literal["train", "validation", "test"]
T = TypeVar("T")


class MotionworldSettings(BaseModel):
    """How much of motionworld is written, and at which size. Counts are clips per source and action."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = ("sprites", "digits", "sticks", "camera", "kaleidoscope")
    side: int = Field(64, ge=16, le=512, multiple_of=2, description="height and width of the files, pixels")
    frames: int = Field(24, ge=2, le=1000, description="frames a file, at 12 frames a second")
    train: int = Field(60, ge=1, description="clips per source and action in the training split")
    validation: int = Field(15, ge=1)
    test: int = Field(25, ge=1)
    seed: int = 0

    def model_post_init(self, _context: object) -> None:
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or not self.sources:
            raise ValueError(f"no motionworld source named {unknown}; sources are {', '.join(SOURCES)}")

    @property
    def fingerprint(self) -> str:
        """Names the data's content: equal settings give equal files."""
        return fingerprint({"renderer": RENDERER_VERSION, **self.model_dump(mode="json")})

    def clips(self) -> int:
        return len(self.sources) * len(ACTIONS) * (self.train + self.validation + self.test)


@dataclass(frozen=True)
class Segment:
    """An action from frame `start` up to, not including, `end`."""

    start: int
    end: int
    action: str


@dataclass(frozen=True)
class ClipRecord:
    """One file: where it is, what happens in it, when, and in which box in each frame (x1, y1, x2, y2 in [0, 1])."""

    path: str
    split: Split
    source: str
    action: str
    frames: int
    segments: tuple[Segment, ...]
    boxes: tuple[tuple[float, ...], ...]

    @property
    def label(self) -> int:
        return ACTIONS.index(self.action)


def cache_home() -> Path:
    """`$VMAE_LAB_HOME`, or `~/.cache/vmae_lab`."""
    return Path(os.environ.get("VMAE_LAB_HOME") or Path.home() / ".cache" / "vmae_lab")


def open_motionworld(settings: MotionworldSettings, processes: int = 1) -> tuple[Path, list[ClipRecord]]:
    """The data set's folder and its clips, written first if it is not there yet.

    The folder is named by its settings. It is written under another name and renamed when it is whole, so an interrupted
    writing goes on where it stopped, and a second one started meanwhile waits. Raises StorageError.
    """
    folder = written_once(f"motionworld-{settings.fingerprint}", lambda partial: _write(settings, partial, processes))
    return folder, _read_records(folder)


def written_once(name: str, write: Callable[[Path], None]) -> Path:
    """A folder of the cache, which `write` fills under another name unless it is there: whole or not at all."""
    home = make_folder(cache_home())
    folder = home / name
    with FileLock(home / f".{name}.lock"):
        if not folder.is_dir():
            write(make_folder(home / f"{name}.partial"))
            with storing_in(home):
                os.replace(home / f"{name}.partial", folder)
    return folder


def render_clip(
    source: str, action: str, settings: MotionworldSettings, split: str, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 `(F, S, S, 3)` and boxes `(F, 4)` of one clip: a pure function of its name and the seed."""
    place = (list(SOURCES).index(source), ACTIONS.index(action), index)
    path = draw_path(action, settings.frames, numpy_generator(settings.seed, f"motion {split}", *place))
    look = numpy_generator(settings.seed, f"look {split}", *place)
    frames = SOURCES[source](path, settings.side, look)
    return (frames * 255).round().clip(0, 255).astype(np.uint8), sources.boxes(source, path)


def _write(settings: MotionworldSettings, folder: Path, processes: int) -> None:
    check_room(folder, settings.clips(), settings.frames * settings.side**2)
    records = in_batches(partial(_write_clip, settings, folder), list(_names(settings)), folder, processes)
    write_text(folder / "clips.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in records))
    write_json(folder / "settings.json", {"renderer": RENDERER_VERSION, **settings.model_dump(mode="json")})


def in_batches(write: Callable[..., T], jobs: list[tuple], folder: Path, processes: int, size: int = 50) -> list[T]:
    """What `write(*job)` gives for each job, in order, `size` at a time in processes of their own, under a progress bar."""
    parts = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    done: list[T] = []
    with worker_pool(processes) as pool, Progress(total=len(jobs), desc=f"writing to {folder.parent}", unit="clips") as bar:
        for written in pool.map(_write_batch, [write] * len(parts), parts):
            done += written
            bar.update(len(written))
    return done


def check_room(folder: Path, clips: int, pixels: int) -> None:
    """Refuse before the first file when the disk cannot hold clips of so many pixels: .1 bytes a pixel is generous for H.264.

    The decoded array that is kept beside the files takes 3 bytes a pixel at most. Raises StorageError.
    """
    needed = int(clips * (pixels * 3.1 + 4096))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder} has {free >> 20} MiB free; motionworld needs about {needed >> 20} MiB. Set VMAE_LAB_HOME elsewhere"
        )


def _names(settings: MotionworldSettings) -> Iterator[tuple[str, str, str, int]]:
    for split in ("train", "validation", "test"):
        for source, action in product(settings.sources, ACTIONS):
            for index in range(getattr(settings, split)):
                yield split, source, action, index


def _relative_path(split: str, source: str, action: str, index: int) -> str:
    return f"{split}/{source}/{action}/{index:05d}.mp4"


def _write_batch(write: Callable[..., T], jobs: list[tuple]) -> list[T]:
    return [write(*job) for job in jobs]


def _write_clip(settings: MotionworldSettings, folder: Path, split: Split, source: str, action: str, index: int) -> ClipRecord:
    path = _relative_path(split, source, action, index)
    frames, boxes = render_clip(source, action, settings, split, index)
    write_mp4(frames, folder / path)
    return ClipRecord(
        path, split, source, action, settings.frames, (Segment(0, settings.frames, action),),
        tuple(tuple(round(float(v), 4) for v in box) for box in boxes),
    )  # fmt: skip


def write_mp4(frames: np.ndarray, path: Path) -> None:
    """Write a clip unless it is there, whole or not at all. Raises StorageError."""
    if path.exists():
        return
    with storing_in(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        encode_mp4(frames, temporary)


def encode_mp4(frames: np.ndarray, path: Path, rate: int = FRAMES_A_SECOND) -> None:
    """Write uint8 `(F, H, W, 3)` as H.264 in mp4, so that equal frames give equal bytes.

    That takes one encoder thread and `cpu-independent`: without it x264's choices vary with the alignment of its buffers.
    """
    options = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _read_records(folder: Path) -> list[ClipRecord]:
    records = []
    for line in (folder / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["segments"] = tuple(Segment(**segment) for segment in row["segments"])
        row["boxes"] = tuple(tuple(box) for box in row["boxes"])
        records.append(ClipRecord(**row))
    return records
