"""Decoded clips of the embedded data set: one uint8 array beside its files, whose pages every process maps."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.transforms.v2 import functional

from vmae_lab.data.decoding import VideoError, read_frames
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.motionworld import ClipRecord
from vmae_lab.utils.atomic_io import atomic_write
from vmae_lab.utils.processes import worker_pool
from vmae_lab.utils.progress import Progress


@dataclass(frozen=True)
class MemmapDataset:
    """Decoded clips of motionworld: `rows` of `frames`, uint8 `(all, T, H, W, C)` mapped from a file, and each one's record."""

    frames: np.memmap
    rows: np.ndarray
    records: list[ClipRecord]

    def __reduce__(self) -> tuple[Any, ...]:
        return _mapped_again, (self.frames.filename, self.rows, self.records)

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array([record.label for record in self.records])

    @cached_property
    def sources(self) -> Sequence[str]:
        return [record.source for record in self.records]

    @property
    def length(self) -> int:
        """Frames of every video."""
        return self.frames.shape[1]

    def subset(self, rows: Sequence[int]) -> "MemmapDataset":
        return MemmapDataset(self.frames, self.rows[list(rows)], [self.records[row] for row in rows])

    def name(self, index: int) -> str:
        return self.records[index].path

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        window = choose(self.length)
        whole = self.frames[self.rows[index]]
        # A range reads only its own frames of the file. Colours stay innermost in memory, which makes resizing faster.
        frames = whole[window.start : window.stop : window.step] if isinstance(window, range) else whole[list(window)]
        return torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor]:
        return (self.video(index, choose) for index in rows)


def _mapped_again(path: Path, rows: np.ndarray, records: list[ClipRecord]) -> MemmapDataset:
    """As a loader process that is spawned gets them: by the file's name, not by its pixels."""
    return MemmapDataset(np.load(path, mmap_mode="r"), rows, records)


def decoded_frames(folder: Path, records: list[ClipRecord], side: int, processes: int) -> np.memmap:
    """All clips of the data set at `side` pixels, uint8 `(n, T, side, side, 3)`, mapped from one file."""
    path = folder / f"decoded-{side}.npy"
    with FileLock(folder / f".{path.name}.lock"):
        if not path.exists():
            with atomic_write(path) as temporary:
                _decode_all(folder, records, side, processes, temporary)
    return np.load(path, mmap_mode="r")


def _decode_all(folder: Path, records: list[ClipRecord], side: int, processes: int, path: Path) -> None:
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(records), records[0].frames, side, side, 3))
    _take_room(path)
    starts = range(0, len(records), 50)
    jobs = [[folder / record.path for record in records[start : start + 50]] for start in starts]
    with (
        worker_pool(processes) as pool,
        Progress(total=len(records), desc="decoding clips", unit="clips") as bar,
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
            paths[0], f"files beside it have different lengths {sorted(lengths)}: delete that folder to write it anew"
        )
    return np.stack(clips)
