"""Features of windows along videos: one file per video (npy, npz, pt, parquet), from `vmae-lab features` or other tools."""

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from vmae_lab.data.video_lists.formats import ListError, list_path
from vmae_lab.utils.atomic_io import fingerprint, read_json
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.settings import Settings

NAMES = ("features", "feats", "feature", "feat")  # of the array in npz and pt files with several arrays
KINDS = (".npy", ".npz", ".pt", ".pth", ".parquet")
PATTERN = "{video}.npy"
SETTINGS, WINDOWS = "features.json", "windows.csv"  # in folders that `vmae-lab features` writes


class FeatureFolder(Settings):
    """A folder of pre-extracted features, e.g. I3D, the official VideoMAE V2 features, or ours."""

    folder: str = Field(description="relative to the root")
    pattern: str = Field(
        PATTERN,
        description="file name; {video}: name of the video without suffix. The default also finds files of `vmae-lab features`",
    )
    stride: int = Field(4, ge=1, description="frames from window to window")
    frames: int = Field(16, ge=1, description="frames of a window")

    def files(self, folder: Path, videos: Sequence[str]) -> dict[str, Path]:
        """Return the file of each video. `videos`: names without suffix.

        With the default `pattern`, files of `vmae-lab features` are found by their windows.csv, because their names contain the
        suffix of the video (`a.mp4.npy`). Raises ListError if their windows differ from `stride` and `frames`.
        """
        files = {video: folder / self.pattern.replace("{video}", video) for video in videos}
        missing = [video for video, file in files.items() if not file.exists()]
        is_ours = all((folder / name).is_file() for name in (SETTINGS, WINDOWS))
        if self.pattern != PATTERN or not missing or not is_ours:
            return files
        extracted, stride, frames = extracted_files(folder)
        if (stride, frames) != (self.stride, self.frames):
            raise ListError(
                f"{folder} has windows of {frames} frames with stride {stride} ({SETTINGS}), not of {self.frames} frames with "
                f"stride {self.stride}; set videos.lists.features.frames to {frames} and stride to {stride}"
            )
        return files | {video: extracted[video] for video in missing if video in extracted}

    def content(self, root: Path) -> str:
        """Return a hash of the names, sizes and times of the files, or the path of the folder if it does not exist."""
        folder = list_path(self.folder, root)
        if not folder.is_dir():
            return str(folder)
        files = ((entry.name, entry.stat()) for entry in os.scandir(folder) if entry.is_file())
        return fingerprint(sorted((name, status.st_size, status.st_mtime_ns) for name, status in files))

    def model_post_init(self, _context: object) -> None:
        if "{video}" not in self.pattern or Path(self.pattern).suffix not in KINDS:
            raise ValueError(f"pattern '{self.pattern}': expected a name with {{video}} and a suffix of {', '.join(KINDS)}")


@dataclass(frozen=True)
class VideoFeatures:
    """Features of some videos. Window i of a video has `frames` frames, starting at frame i * `stride`.

    Only the requested part of an npy file is read. The content of other files stays in memory.
    """

    files: Mapping[str, Path]
    lengths: Mapping[str, int]
    width: int
    stride: int
    frames: int
    _kept: Mapping[str, np.ndarray] = field(default_factory=dict)

    def read(self, video: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """Read float32 `(length, width)` from time step `start` on, by default to the end. Raises ListError."""
        table = self._kept[video] if video in self._kept else _load(self.files[video])
        return torch.from_numpy(_finite(table[start : None if length is None else start + length], self.files[video]))

    def times(self, steps: np.ndarray, rate: float) -> np.ndarray:
        """Convert time steps to seconds, at the middle of their windows. `rate`: frames per second."""
        return (steps * self.stride + self.frames / 2) / rate

    def steps(self, seconds: np.ndarray, rate: float) -> np.ndarray:
        """Convert seconds to time steps: the inverse of `times`."""
        return (seconds * rate - self.frames / 2) / self.stride


def extracted_files(folder: Path) -> tuple[dict[str, Path], int, int]:
    """Return files of `vmae-lab features` by the name of their video without suffix, the stride, and the frames of a window.

    Raises ListError if two videos have the same name.
    """
    table = pd.read_csv(folder / WINDOWS, usecols=["path", "file"]).drop_duplicates()
    names = table["path"].map(lambda path: Path(path).stem)
    if repeated := sorted(set(names[names.duplicated()])):
        raise ListError(f"{folder / WINDOWS} has several videos of the same name: {first_of(repeated)}")
    made = read_json(folder / SETTINGS)
    files = {name: folder / file for name, file in zip(names, table["file"], strict=True)}
    return files, made["stride"], made["clip"]["frames"]


def open_features(files: Mapping[str, Path], stride: int, frames: int) -> VideoFeatures:
    """Open the features of some videos. Raises ListError with the missing, malformed and differently wide files."""
    shapes: dict[str, tuple[int, ...]] = {}
    kept: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    for video, file in files.items():
        try:
            table = _load(file) if file.suffix == ".npy" else read_features(file)
        except ListError as error:
            wrong.append(str(error))
            continue
        shapes[video] = table.shape
        if file.suffix != ".npy":
            kept[video] = table
    width = next((shape[1] for shape in shapes.values()), 0)
    wrong += [
        f"{files[video]} has width {shape[1]}, the first file {width}" for video, shape in shapes.items() if shape[1] != width
    ]
    if wrong:
        raise ListError(f"features of {len(wrong)} of {counted(len(files), 'video')} cannot be used: {first_of(wrong, '; ')}")
    return VideoFeatures(files, {video: shape[0] for video, shape in shapes.items()}, width, stride, frames, kept)


def read_features(file: Path) -> np.ndarray:
    """Read the features of a video, float32 `(T, C)`. The suffix of the file gives the format. Raises ListError."""
    return _finite(_load(file), file)


def _finite(table: np.ndarray, file: Path) -> np.ndarray:
    features = np.array(table, dtype=np.float32)
    if not np.isfinite(features).all():
        raise ListError(f"{file} has values that are not finite")
    return features


def _load(file: Path) -> np.ndarray:
    """Load the array of a file, `(T, C)`. npy files are memory-mapped. Raises ListError."""
    try:
        if file.suffix == ".npy":
            table = np.load(file, mmap_mode="r")
        elif file.suffix == ".npz":
            with np.load(file) as archive:
                table = archive[_array_name(list(archive))]
        elif file.suffix == ".parquet":
            table = np.stack(pd.read_parquet(file, columns=["features"], engine="pyarrow").features)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            table = (loaded[_array_name(list(loaded))] if isinstance(loaded, dict) else loaded).float().numpy()
    except (OSError, ValueError, EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile, AttributeError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split()) or "the file is truncated"
        raise ListError(f"cannot read {file}: {cause}") from error
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiu":
        raise ListError(f"{file} has {table.dtype} of shape {table.shape}; expected numbers of shape (windows, width)")
    return table


def _array_name(names: list[str]) -> str:
    """Return the name of the only array of a file, or the one in NAMES. Raises ValueError."""
    found = names if len(names) == 1 else [name for name in NAMES if name in names]
    if not found:
        raise ValueError(
            f"it has {', '.join(names) or 'no arrays'}; expected a single array, or one named {' or '.join(NAMES)}"
        )
    return found[0]
