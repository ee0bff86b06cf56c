"""Features of windows along videos, a file a video, as `vmae-lab features` or others wrote them: npy, npz, pt, parquet."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.video_lists.formats import ListError, place_of
from vmae_lab.utils.atomic_io import fingerprint

NAMES = ("features", "feats", "feature", "feat")  # of arrays in npz and pt files that hold several
KINDS = (".npy", ".npz", ".pt", ".pth", ".parquet")
SHOWN = 10  # faults that a message lists


class FeatureFolder(BaseModel):
    """Features that are there already: I3D, the official VideoMAE V2 features, ours."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = Field(description="relative to the root")
    pattern: str = Field("{video}.npy", description="name of a video's file; {video} stands for its name")
    stride: int = Field(4, ge=1, description="frames from window to window")
    frames: int = Field(16, ge=1, description="frames of a window")

    def content(self, root: Path) -> str:
        """Names the folder's content: its files' names, sizes and times, or its place while it is not there."""
        folder = place_of(self.folder, root)
        if not folder.is_dir():
            return str(folder)
        seen = ((entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file())
        return fingerprint(sorted((name, found.st_size, found.st_mtime_ns) for name, found in seen))

    def model_post_init(self, _context: object) -> None:
        if "{video}" not in self.pattern or Path(self.pattern).suffix not in KINDS:
            raise ValueError(f"pattern '{self.pattern}': a name with {{video}} in it and one of {', '.join(KINDS)} is expected")


@dataclass(frozen=True)
class VideoFeatures:
    """Features of some videos: window i of a video has the frames from i * `stride` on, `frames` of them.

    npy files are read as far as they are asked for; what other files hold is kept in memory.
    """

    files: Mapping[str, Path]
    lengths: Mapping[str, int]
    width: int
    stride: int
    frames: int
    _kept: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(self, video: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Float32 `(length, width)` of a video from time step `start` on, to its end where no length is given. Raises
        ListError."""
        table = self._kept[video] if video in self._kept else _mapped(self.files[video])
        return torch.from_numpy(_checked(table[start : None if length is None else start + length], self.files[video]))

    def times(self, steps: np.ndarray, rate: float) -> np.ndarray:
        """Seconds of places in time steps: those of the middles of windows, at `rate` frames a second."""
        return (steps * self.stride + self.frames / 2) / rate

    def steps(self, seconds: np.ndarray, rate: float) -> np.ndarray:
        """Places in time steps of seconds: the other way round."""
        return (seconds * rate - self.frames / 2) / self.stride


def open_features(files: Mapping[str, Path], stride: int, frames: int) -> VideoFeatures:
    """The features of some videos, each looked at once. Raises ListError naming all that is not there, or is no table of
    numbers, or is of another width than the first.
    """
    lengths: dict[str, int] = {}
    widths: dict[str, int] = {}
    kept: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for video, file in files.items():
        try:
            table = _mapped(file) if file.suffix == ".npy" else read_features(file)
        except ListError as error:
            wrong.append(str(error))
            continue
        lengths[video], widths[video] = table.shape
        if file.suffix != ".npy":
            kept[video] = table
    width = next(iter(widths.values()), 0)
    wrong += [f"{files[video]} is {one} wide, the first {width}" for video, one in widths.items() if one != width]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ListError(f"features of {len(wrong)} of {len(files)} videos cannot be used: {'; '.join(wrong[:SHOWN])}{more}")
    return VideoFeatures(files, lengths, width, stride, frames, kept)


def read_features(file: Path) -> np.ndarray:
    """One video's features, float32 `(T, C)`, by the file's ending. Raises ListError."""
    table = _array(file)
    if table.ndim != 2 or not table.size:
        raise ListError(f"{file} holds numbers of shape {table.shape}; (windows, width) is expected")
    return _checked(table, file)


def _checked(table: np.ndarray, file: Path) -> np.ndarray:
    """Some of a file's windows as float32, if they are numbers. Raises ListError."""
    found = np.array(table, dtype=np.float32)
    if not np.isfinite(found).all():
        raise ListError(f"{file} holds values that are no numbers")
    return found


def _mapped(file: Path) -> np.ndarray:
    """An npy file of which only the header is read."""
    try:
        table = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ListError(_unreadable(file, error)) from error
    if table.ndim != 2 or not table.size or table.dtype.kind != "f":
        raise ListError(f"{file} holds {table.dtype} of shape {table.shape}; numbers of (windows, width) are expected")
    return table


def _array(file: Path) -> np.ndarray:
    try:
        if file.suffix == ".npy":
            return np.load(file)
        if file.suffix == ".npz":
            with np.load(file) as archive:
                return archive[_named(file, list(archive))]
        if file.suffix == ".parquet":
            return np.stack(pd.read_parquet(file, columns=["features"], engine="pyarrow").features)
        found = torch.load(file, map_location="cpu", weights_only=True)
        found = found[_named(file, list(found))] if isinstance(found, dict) else found
        return found.float().numpy()
    except (OSError, ValueError, EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile, AttributeError) as error:
        raise ListError(_unreadable(file, error)) from error


def _named(file: Path, names: list[str]) -> str:
    """Which of a file's arrays are the features: the only one, or the one that is called so."""
    found = names if len(names) == 1 else [name for name in NAMES if name in names]
    if not found:
        raise ValueError(f"it holds {', '.join(names) or 'nothing'}; one array, or one named {' or '.join(NAMES)}, is expected")
    return found[0]


def _unreadable(file: Path, error: Exception) -> str:
    return f"cannot read {file}: {getattr(error, 'strerror', None) or ' '.join(str(error).split()) or 'it is cut short'}"
