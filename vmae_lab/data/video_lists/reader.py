"""A list's lines, checked: every bad one is reported before anything is decoded."""

import os
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.folders import Listing, cells_of_files, is_video, listed_files
from vmae_lab.data.video_lists.formats import Cells, Faults, ListError, absolute, place_of, read_file, whole_numbers
from vmae_lab.data.video_lists.labels import AS_NAMES, read_labels
from vmae_lab.utils.atomic_io import readable

SHOWN = 10  # classes that a warning names


@dataclass(frozen=True)
class VideoList:
    """Checked videos of one list; whether their files are there is not looked at.

    `table`, in the list's order:
    - `path` (str), relative to `root`; `line` (int64), where it is in the list, 0 for folders and globs;
    - `label` (int64), -1 where unlabelled;
    - `start` (int64), number of the first frame in a folder of frames; `total` (int64), its frames, -1: a video file;
    - where the list has them `offset` and `size` (int64, bytes of a video inside `path`), and what a check saw: `frames`
      and `bytes` (int64), `decoder` (str).

    `classes`: names in label order, `("0", "1", ...)` if labels are numbers, `()` if unlabelled. `skipped`: the files that a
    folder has and that are no videos by their suffix, for a message; empty if there are none.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...]
    skipped: str = ""

    def __len__(self) -> int:
        return len(self.table)


def read_list(
    location: str | Path,
    root: str | Path = ".",
    labelled: bool = False,
    classes: Sequence[str] | int | None = None,
    follow_links: bool = False,
) -> VideoList:
    """The videos of one list, relative to `root`. The form is detected by content:

    - lines split by white space, or by commas: `path start_index total_frames` or `path` alone without labels, `path label`
      or `path total_frames label` with them;
    - a table with the column `path` (or `video_path`, `video`, `filename`), split by commas, semicolons or tabs, or Parquet;
      `label` (number or name), `class_index`, `lost_classes`, `start`, `total`, `frames`, `bytes`, `decoder`, `offset` with
      `size`, `path_escaped`; others are ignored;
    - a folder: its videos, each one's class the first folder below it; a glob: the class is the folder that a video is in;
    - a single video, without labels.

    `labels.py` states when labels are numbers or names. `classes`: names in label order, or their number. `follow_links`: list
    what is in linked folders. Warns of links that were skipped, and of classes without a video. Raises ListError naming bad
    lines (the first ten): bad numbers, unknown classes, repeated videos, paths out of the root.
    """
    cells, listing = _cells(location, absolute(root), labelled, follow_links)
    faults = cells.faults
    table = pd.DataFrame({"path": _paths(cells)})
    table["label"], names = read_labels(cells, classes) if labelled else (np.int64(-1), ())
    for name, column in _numbers(cells).items():
        table[name] = column
    if "decoder" in cells.table:
        table["decoder"] = cells.table["decoder"].astype(str)
    table["line"] = cells.table["line"]
    _check_repeats(table, faults)
    faults.check(cells.place)
    if table.empty:
        raise ListError(f"{cells.place}: the list is empty")
    notes = listing.skipped(labelled) if listing else []
    notes += _without_videos(table["label"].to_numpy(), names, classes is None) if labelled else []
    if notes:
        warnings.warn(readable(f"{cells.place}: {'; '.join(notes)}"), stacklevel=_callers())
    return VideoList(cells.root, table, names, listing.other_files if listing else "")


def _without_videos(labels: np.ndarray, names: tuple[str, ...], counted: bool) -> list[str]:
    """A phrase that names the classes without a video, if there are any: their share of a metric would be missing."""
    lacking = [names[place] for place in np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)]
    if not lacking:
        return []
    more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
    hint = f" ({AS_NAMES})" if counted and 2 * len(lacking) > len(names) else ""
    return [f"{len(lacking)} of {len(names)} classes without a video: {', '.join(lacking[:SHOWN])}{more}{hint}"]


def _callers() -> int:
    """The stack level, for `warnings.warn`, of whoever called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith("vmae_lab."):
        level, frame = level + 1, frame.f_back
    return level


def _cells(location: str | Path, root: Path, labelled: bool, follow_links: bool) -> tuple[Cells, Listing | None]:
    """What the list at `location` says, and what a folder or glob has besides. Raises ListError."""
    place = place_of(location, root)
    try:
        if not place.is_file():
            listing = listed_files(location, root, follow_links)
        elif is_video(place):
            listing = Listing(place.parent, [place.name], Counter())
        else:
            return read_file(place, root, labelled), None
    except OSError as error:
        raise ListError(f"cannot read {error.filename or place}: {error.strerror or error}") from error
    if listing is None:
        raise ListError(f"there is no list file or folder {place}")
    if labelled and place.is_file():
        raise ListError(
            f"{place} is a single video, which has no label: give a folder that has a folder per class, or a list with the "
            "columns path and label"
        )
    return cells_of_files(place, root, listing, labelled), listing


def _paths(cells: Cells) -> pd.Series:
    """The checked paths, relative to the root."""
    paths, root = cells.table["path"], cells.root
    cells.faults.add((paths == "").to_numpy(), lambda row: "the path is empty")
    cells.faults.add(paths.str.contains("\0", regex=False).to_numpy(), lambda row: f"the path {paths[row]!r} has a NUL byte")
    windows = paths.str.contains("\\", regex=False).to_numpy(bool, copy=True)
    windows[windows] = [not os.path.lexists(Path(root, path)) for path in paths[windows]]
    cells.faults.add(windows, lambda row: f"there is no {paths[row]!r}; write / between folders, not a backslash")
    if str(root) == root.anchor:  # the root of the system: every path is inside
        return paths.str.lstrip("/")
    suspects = (paths.str.startswith("/") | paths.str.contains("..", regex=False)).to_numpy()
    outside = suspects.copy()
    outside[suspects] = [os.path.isabs(path) or normpath(path).split("/")[0] == ".." for path in paths[suspects]]
    cells.faults.add(outside, lambda row: f"{paths[row]!r} {_where(paths[row], root)}")
    return paths


def _where(path: str, root: Path) -> str:
    inside = Path(os.path.normpath(path)).is_relative_to(root)
    place = f"is absolute, where paths below the root {root} are expected" if inside else f"is outside the root {root}"
    return f"{place}; set root: / for lists of absolute paths"


def _numbers(cells: Cells) -> dict[str, np.ndarray]:
    """The checked columns of whole numbers, int64 `(n,)`; `start` and `total` also where the list has none."""
    table, faults = cells.table, cells.faults
    total = _column(table, "total", faults, empty=-1)
    faults.add(total < -1, lambda row: f"total {total[row]} is negative; -1 stands for a video file")
    faults.add(total == 0, lambda row: "total 0: a folder without frames")
    # The official code numbers a folder's frames from 1 where a list has no start; for a video file it says nothing.
    start = _column(table, "start", faults, empty=np.where(total > 0, 1, 0))
    faults.add(start < 0, lambda row: f"start {start[row]} is negative")
    columns = {"start": start, "total": total}
    if ("offset" in table) != ("size" in table):
        raise ListError(f"{cells.place}: the columns offset and size go together")
    for name, least in (("frames", 1), ("bytes", 0), ("offset", 0), ("size", 1)):
        if name in table:
            values = _column(table, name, faults)

            def tell(row: int, name: str = name, values: np.ndarray = values) -> str:
                return f"{name} {values[row]} is too small"

            faults.add(values < least, tell)
            columns[name] = values
    return columns


def _column(table: pd.DataFrame, name: str, faults: Faults, empty: int | np.ndarray | None = None) -> np.ndarray:
    """A column of whole numbers; `empty` where it is left out or a cell is empty, which is a fault if that is None."""
    if name not in table:
        return np.broadcast_to(np.asarray(empty), len(table)).astype(np.int64)
    values, good = whole_numbers(table[name], points=empty is not None)  # a column with gaps is one of floats to pandas
    if empty is not None:
        left_out = (table[name] == "").to_numpy()
        values, good = np.where(left_out, empty, values), good | left_out
    faults.add(~good, lambda row: f"{name} {table[name][row]!r} is not a whole number")
    return values


def _check_repeats(table: pd.DataFrame, faults: Faults) -> None:
    """A video that is counted twice biases a run, whatever its labels; so does one under two spellings of its path."""
    paths = table["path"]
    odd = paths.str.contains("./", regex=False) | paths.str.contains("//", regex=False)
    keys = pd.DataFrame({"path": paths.mask(odd, paths[odd].map(normpath)), "start": table["start"]})
    if "offset" in table:
        keys["offset"] = table["offset"]
    good = ~faults.bad
    repeated = np.zeros(len(table), bool)
    repeated[good] = keys[good].duplicated()
    if not repeated.any():
        return
    first = keys[good].assign(row=np.flatnonzero(good)).groupby(list(keys.columns), sort=False)["row"].transform("first")

    def tell(row: int) -> str:
        other = first[row]
        label = f", with label {table['label'][other]} there" if table["label"][other] != table["label"][row] else ""
        return f"{paths[row]!r} is in line {table['line'][other]} already{label}"

    faults.add(repeated, tell)
