"""Decoded clips of the embedded data set, in one memory-mapped file next to the videos that all processes share."""

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
from vmae_lab.utils.processes import parallel_map
from vmae_lab.utils.progress import Progress

BATCH = 50  # files that a process decodes at a time


@dataclass(frozen=True)
class MemmapDataset:
    """Clips of motionworld: `rows` of the memory-mapped `frames`, uint8 `(all, T, H, W, C)`, and their `records`."""

    frames: np.memmap
    rows: np.ndarray
    records: list[ClipRecord]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name of the file, not its pixels, for spawned data loader processes."""
        return _open_again, (self.frames.filename, self.rows, self.records)

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
        """Number of frames of every video."""
        return self.frames.shape[1]

    def subset(self, rows: Sequence[int]) -> "MemmapDataset":
        return MemmapDataset(self.frames, self.rows[list(rows)], [self.records[row] for row in rows])

    def name(self, index: int) -> str:
        return self.records[index].path

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        window, clip = choose(self.length), self.frames[self.rows[index]]
        # A slice reads only its own frames from the file. Colors stay innermost in memory, which makes resizing faster.
        frames = clip[window.start : window.stop : window.step] if isinstance(window, range) else clip[list(window)]
        return torch.from_numpy(np.array(frames)).permute(3, 0, 1, 2)

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor]:
        return (self.video(index, choose) for index in rows)


def _open_again(path: Path, rows: np.ndarray, records: list[ClipRecord]) -> MemmapDataset:
    return MemmapDataset(np.load(path, mmap_mode="r"), rows, records)


def decoded_frames(folder: Path, records: list[ClipRecord], side: int, processes: int) -> np.memmap:
    """Return all clips of the data set: uint8 `(n, T, side, side, 3)`. They are decoded first if the file does not exist."""
    path = folder / f"decoded-{side}.npy"
    with FileLock(folder / f".{path.name}.lock"):
        if not path.exists():
            with atomic_write(path) as temporary:
                _decode_all(folder, records, side, processes, temporary)
    return np.load(path, mmap_mode="r")


def _decode_all(folder: Path, records: list[ClipRecord], side: int, processes: int, path: Path) -> None:
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (len(records), records[0].frames, side, side, 3))
    if hasattr(os, "posix_fallocate"):  # reserve disk space: writing to a mapped file on a full disk kills the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    starts = range(0, len(records), BATCH)
    jobs = [[folder / record.path for record in records[start : start + BATCH]] for start in starts]
    with parallel_map(processes) as map_batches, Progress(total=len(records), desc="decoding clips", unit="clips") as bar:
        for start, decoded in zip(starts, map_batches(_decode, jobs, [side] * len(jobs)), strict=True):
            array[start : start + len(decoded)] = decoded
            bar.update(len(decoded))
    array.flush()


def _decode(paths: list[Path], side: int) -> np.ndarray:
    """Decode and resize whole files: uint8 `(n, T, side, side, 3)`."""
    torch.set_num_threads(1)
    videos = (torch.from_numpy(read_frames(path)).permute(0, 3, 1, 2) for path in paths)
    clips = [functional.resize(video, [side, side], antialias=True).permute(0, 2, 3, 1).numpy() for video in videos]
    lengths = {len(clip) for clip in clips}
    if len(lengths) > 1:
        raise VideoError(
            paths[0], f"videos of its data set have different lengths {sorted(lengths)}; delete the folder to write it again"
        )
    return np.stack(clips)
