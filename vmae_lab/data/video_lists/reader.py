"""Reads the videos of one list, and reports every bad line before anything is decoded."""

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
from vmae_lab.utils.errors import first_of

LEAST = {"frames": 1, "bytes": 0, "offset": 0, "size": 1}  # the smallest values of other columns


@dataclass(frozen=True)
class VideoList:
    """The checked videos of one list. Whether their files exist is not checked.

    `table`, in the list's order:
    - `path` (str), relative to `root`; `line` (int64), its line in the list, 0 for folders and globs;
    - `label` (int64), -1 if unlabelled;
    - `start` (int64), number of the first frame in a folder of frames; `total` (int64), its frames, -1: a video file;
    - if the list has them, `offset` and `size` (int64, bytes of a video inside `path`), and the results of a check: `frames`
      and `bytes` (int64), `decoder` (str).

    `classes`: names in label order, `("0", "1", ...)` if labels are numbers, `()` if unlabelled. `skipped`: a message about the
    files of a folder without a video's suffix; empty if there are none.
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
    """Read the videos of one list, relative to `root`. The form is detected by content:

    - lines split by white space, or by commas: `path start_index total_frames` or `path` alone without labels, `path label`
      or `path total_frames label` with them;
    - a table with the column `path` (or `video_path`, `video`, `filename`), split by commas, semicolons or tabs, or Parquet;
      `label` (number or name), `class_index`, `lost_classes`, `start`, `total`, `frames`, `bytes`, `decoder`, `offset` with
      `size`, `path_escaped`; others are ignored;
    - a folder: its videos, each one's class the first folder below it; a glob: the class is the folder that a video is in;
    - a single video, without labels.

    `classes`: names in label order, or their number. `labels.py` states when labels are numbers or names. `follow_links` lists
    the content of linked folders. Warns of skipped links and of classes without a video. Raises ListError with the first ten
    bad lines: bad numbers, unknown classes, repeated videos, paths out of the root.
    """
    cells, listing = _read_cells(location, absolute(root), labelled, follow_links)
    faults = cells.faults
    table = pd.DataFrame({"path": _check_paths(cells)})
    table["label"], names = read_labels(cells, classes) if labelled else (np.int64(-1), ())
    for name, column in _check_numbers(cells).items():
        table[name] = column
    if "decoder" in cells.table:
        table["decoder"] = cells.table["decoder"].astype(str)
    table["line"] = cells.table["line"]
    _check_repeats(table, faults)
    faults.check(cells.place)
    if table.empty:
        raise ListError(f"{cells.place}: the list is empty")
    notes = listing.skipped(labelled) if listing else []
    if labelled:  # the share of a class without a video would be missing in a metric
        lacking = [names[i] for i in np.flatnonzero(np.bincount(table["label"], minlength=len(names)) == 0)]
        hint = f" ({AS_NAMES})" if classes is None and 2 * len(lacking) > len(names) else ""
        if lacking:
            notes.append(f"{len(lacking)} of {len(names)} classes without a video: {first_of(lacking)}{hint}")
    if notes:
        warnings.warn(readable(f"{cells.place}: {'; '.join(notes)}"), stacklevel=_level_of_caller())
    return VideoList(cells.root, table, names, listing.other_files if listing else "")


def _level_of_caller() -> int:
    """Return the stack level, for `warnings.warn`, of the code that called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith("vmae_lab."):
        level, frame = level + 1, frame.f_back
    return level


def _read_cells(location: str | Path, root: Path, labelled: bool, follow_links: bool) -> tuple[Cells, Listing | None]:
    """Return the content of a list, and of a folder or glob also what it skips. Raises ListError."""
    place = place_of(location, root)
    single = False
    try:
        if not place.is_file():
            listing = listed_files(location, root, follow_links)
        elif single := is_video(place):
            listing = Listing(place.parent, [place.name], Counter())
        else:
            return read_file(place, root, labelled), None
    except OSError as error:
        raise ListError(f"cannot read {error.filename or place}: {error.strerror or error}") from error
    if listing is None:
        raise ListError(f"there is no list file or folder {place}")
    if labelled and single:
        raise ListError(
            f"{place} is a single video, which has no label: give a folder that has a folder per class, or a list with the "
            "columns path and label"
        )
    return cells_of_files(place, root, listing, labelled), listing


def _check_paths(cells: Cells) -> pd.Series:
    """Return the paths, relative to the root."""
    paths, root = cells.table["path"], cells.root
    cells.faults.add((paths == "").to_numpy(), lambda row: "the path is empty")
    cells.faults.add(paths.str.contains("\0", regex=False).to_numpy(), lambda row: f"the path {paths[row]!r} has a NUL byte")
    windows = paths.str.contains("\\", regex=False).to_numpy(bool, copy=True)
    windows[windows] = [not os.path.lexists(Path(root, path)) for path in paths[windows]]
    cells.faults.add(windows, lambda row: f"there is no {paths[row]!r}; write / between folders, not a backslash")
    if str(root) == root.anchor:  # the root of the file system: every path is inside
        return paths.str.lstrip("/")
    outside = (paths.str.startswith("/") | paths.str.contains("..", regex=False)).to_numpy(bool, copy=True)
    outside[outside] = [os.path.isabs(path) or normpath(path).split("/")[0] == ".." for path in paths[outside]]

    def message(row: int) -> str:
        inside = Path(os.path.normpath(paths[row])).is_relative_to(root)
        what = f"is absolute, but paths below the root {root} are expected" if inside else f"is outside the root {root}"
        return f"{paths[row]!r} {what}; set root: / for lists of absolute paths"

    cells.faults.add(outside, message)
    return paths


def _check_numbers(cells: Cells) -> dict[str, np.ndarray]:
    """Return the columns of whole numbers, int64 `(n,)`. `start` and `total` get defaults if the list has none."""
    table, faults = cells.table, cells.faults

    def column(name: str, least: int, default: int | np.ndarray | None = None, hint: str = "") -> np.ndarray:
        if name not in table:
            return np.broadcast_to(np.asarray(default), len(table)).astype(np.int64)
        values, good = whole_numbers(table[name], points=default is not None)  # pandas writes a column with gaps as floats
        if default is not None:
            empty = (table[name] == "").to_numpy()
            values, good = np.where(empty, default, values), good | empty
        faults.add(~good, lambda row: f"{name} {table[name][row]!r} is not a whole number")
        faults.add(values < least, lambda row: f"{name} {values[row]} is too small{hint}")
        return values

    if ("offset" in table) != ("size" in table):
        raise ListError(f"{cells.place}: the columns offset and size go together")
    total = column("total", -1, default=-1, hint="; -1 stands for a video file")
    faults.add(total == 0, lambda row: "total 0: a folder without frames")
    start = column("start", 0, default=np.where(total > 0, 1, 0))  # the official code numbers frames from 1
    others = {name: column(name, least) for name, least in LEAST.items() if name in table}
    return {"start": start, "total": total, **others}


def _check_repeats(table: pd.DataFrame, faults: Faults) -> None:
    """Refuse videos that are listed twice, also under two spellings of a path: they would count twice."""
    paths = table["path"]
    odd = paths.str.contains("./", regex=False) | paths.str.contains("//", regex=False)
    keys = pd.DataFrame({"path": paths.mask(odd, paths[odd].map(normpath)), "start": table["start"]})
    if "offset" in table:
        keys["offset"] = table["offset"]
    keys = keys[~faults.bad]
    repeated = np.zeros(len(table), bool)
    repeated[~faults.bad] = keys.duplicated()
    if not repeated.any():
        return
    first = keys.assign(row=keys.index).groupby(list(keys.columns), sort=False)["row"].transform("first")

    def message(row: int) -> str:
        other = first[row]
        label = f", with label {table['label'][other]} there" if table["label"][other] != table["label"][row] else ""
        return f"{paths[row]!r} is in line {table['line'][other]} already{label}"

    faults.add(repeated, message)
