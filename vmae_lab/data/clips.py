"""A split of clips that is decoded once and kept: what training and evaluation draw from.

Small data sets are decoded once into one uint8 array beside their files; every process maps the same pages.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from vmae_lab.data.augment import SCALES, centre_crop, channels_first
from vmae_lab.data.lists import ListSettings, read_list
from vmae_lab.data.motionworld import ACTIONS, ClipRecord, MotionworldSettings, open_motionworld
from vmae_lab.data.sampling import dense_window
from vmae_lab.data.video import VideoError, read_frames
from vmae_lab.files import whole_file
from vmae_lab.processes import worker_pool


class DataSettings(BaseModel):
    """The embedded data set or list files, and how clips are cut and kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motionworld: MotionworldSettings | None = None
    lists: ListSettings | None = None
    pretrain_sources: tuple[str, ...] = Field((), description="sources pre-trained on; all that are written where empty")
    pretrain_limits: dict[str, int] = Field({}, description="clips per action to pre-train on, by source; all where left out")
    mixing: float = Field(
        1.0, ge=0, le=1, description="a source of n clips is drawn in proportion to n**mixing: 1 by size, 0 uniform"
    )
    resident_side: int = Field(40, ge=8, description="pixels at which decoded clips are kept in memory")
    stride: int = Field(1, ge=1, description="frames between two frames of a clip")
    crop_scales: tuple[float, ...] = Field(SCALES, min_length=1, description="parts of the short side")

    def model_post_init(self, _context: object) -> None:
        if (self.motionworld is None) == (self.lists is None):
            raise ValueError("give one of data.motionworld (the embedded data set) and data.lists (list files)")
        if self.motionworld is None:
            if self.pretrain_sources or self.pretrain_limits or self.mixing != 1:
                raise ValueError("pretrain_sources, pretrain_limits and mixing choose among sources; list files name none")
            return
        missing = {*self.pretrain_sources, *self.pretrain_limits} - set(self.motionworld.sources)
        if missing:
            written = ", ".join(self.motionworld.sources)
            raise ValueError(f"sources to pre-train on, {sorted(missing)}, are not among the written ones, {written}")
        for source, limit in self.pretrain_limits.items():
            if not 1 <= limit <= self.motionworld.train:
                raise ValueError(f"pretrain_limits: {source} has 1 to {self.motionworld.train} clips an action; got {limit}")
        if self.resident_side > self.motionworld.side:
            raise ValueError(f"resident_side {self.resident_side} is larger than the files' side {self.motionworld.side}")

    @property
    def fingerprint(self) -> str:
        """Names the data's content: equal fingerprints mean the same pixels."""
        return (self.motionworld or self.lists).fingerprint

    @property
    def classes(self) -> int:
        return len(ACTIONS) if self.motionworld else self.lists.classes

    @property
    def sources(self) -> tuple[str, ...]:
        """Names that `pretrain_sources` and an evaluation can pick from."""
        return self.motionworld.sources if self.motionworld else ()

    @property
    def pretrain_clips(self) -> int:
        """Clips to pre-train on, where that is known before they are read: of list files it is not, and 0 is told."""
        if self.motionworld is None:
            return 0
        pool = self.pretrain_sources or self.sources
        return self.classes * sum(self.pretrain_limits.get(source, self.motionworld.train) for source in pool)

    @property
    def seed(self) -> int:
        """What the draws of labelled clips start from."""
        return self.motionworld.seed if self.motionworld else 0


class Clips(Protocol):
    """Videos to draw clips from, in a fixed order; `labels` is int64 `(n,)`, `sources` a name a video."""

    labels: np.ndarray

    @property
    def sources(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def frame_count(self, index: int) -> int: ...

    def video(self, index: int, window: range) -> Tensor:
        """The frames of a window of one video: uint8 `(C, T, H, W)`."""
        ...


@dataclass(frozen=True)
class ResidentClips:
    """Decoded clips of motionworld: `rows` of `frames`, uint8 `(all, T, H, W, C)` mapped from a file, and each one's record."""

    frames: np.ndarray
    rows: np.ndarray
    records: list[ClipRecord]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array([record.label for record in self.records])

    @property
    def sources(self) -> Sequence[str]:
        return [record.source for record in self.records]

    @property
    def length(self) -> int:
        """Frames of every video."""
        return self.frames.shape[1]

    def frame_count(self, index: int) -> int:
        return self.length

    def video(self, index: int, window: range) -> Tensor:
        return channels_first(self.frames[self.rows[index], window.start : window.stop : window.step])


def middle_clips(clips: Clips, rows: Sequence[int], frames: int, stride: int, side: int) -> Tensor:
    """What is evaluated: the middle window of some videos, its largest central square: uint8 `(B, C, T, side, side)`."""
    windows = ((i, dense_window(clips.frame_count(i), frames, stride, 0.5)) for i in rows)
    return torch.stack([centre_crop(clips.video(i, window), side) for i, window in windows])


def batches_of(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Rows in order, `size` at a time, the last batch smaller: every row once."""
    return (rows[start : start + size] for start in range(0, len(rows), size))


def load_clips(settings: DataSettings, split: str, sources: tuple[str, ...] = (), processes: int = 1) -> Clips:
    """The clips of a split (`pretrain`, `train`, `validation`, `test`), of some sources or all, in a fixed order.

    motionworld is written and decoded where that was not done; it pre-trains on its training split.
    """
    if settings.lists:
        return read_list(settings.lists, split)
    folder, records = open_motionworld(settings.motionworld, processes)
    everything = _resident(folder, records, settings.resident_side, processes)
    limits = settings.pretrain_limits if split == "pretrain" else {}
    split, wanted = "train" if split == "pretrain" else split, sources or settings.sources
    taken, rows = Counter[tuple[str, str]](), []
    for row, record in enumerate(records):
        kind = (record.source, record.action)
        if record.split == split and record.source in wanted and taken[kind] < limits.get(record.source, len(records)):
            taken[kind] += 1
            rows.append(row)
    return ResidentClips(everything, np.array(rows), [records[row] for row in rows])


def _resident(folder: Path, records: list[ClipRecord], side: int, processes: int) -> np.ndarray:
    """All clips of the data set at `side` pixels, uint8 `(n, T, side, side, 3)`, mapped from one file."""
    path = folder / f"decoded-{side}.npy"
    with FileLock(folder / f".{path.name}.lock"):
        if not path.exists():
            with whole_file(path) as temporary:
                _decode_all(folder, records, side, processes, temporary)
    return np.load(path, mmap_mode="r")


def _decode_all(folder: Path, records: list[ClipRecord], side: int, processes: int, path: Path) -> None:
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(records), records[0].frames, side, side, 3))
    _take_room(path)
    starts = range(0, len(records), 50)
    jobs = [[folder / record.path for record in records[start : start + 50]] for start in starts]
    with (
        worker_pool(processes) as pool,
        tqdm(total=len(records), desc="decoding clips", unit="clip") as bar,
    ):
        for start, decoded in zip(starts, pool.map(_decode, jobs, [side] * len(jobs)), strict=True):
            array[start : start + len(decoded)] = decoded
            bar.update(len(decoded))
    array.flush()


def _take_room(path: Path) -> None:
    """Take a sparse file's room now, where the system can: a mapped file that finds the disk full kills its process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _decode(paths: list[Path], side: int) -> np.ndarray:
    """Decode and shrink whole files: uint8 `(n, T, side, side, 3)`."""
    torch.set_num_threads(1)
    clips = []
    for path in paths:
        video = torch.from_numpy(read_frames(path)).permute(0, 3, 1, 2)
        small = functional.resize(video, [side, side], antialias=True)
        clips.append(small.permute(0, 2, 3, 1).numpy())
    lengths = {len(clip) for clip in clips}
    if len(lengths) > 1:
        raise VideoError(
            f"the files beside {paths[0]} have different lengths {sorted(lengths)}: delete that folder to write it anew"
        )
    return np.stack(clips)
