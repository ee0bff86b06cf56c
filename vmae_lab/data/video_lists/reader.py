"""Reader of one list. It reports all bad lines before any video is decoded."""

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

from vmae_lab.data.decoding.container import URL, is_url
from vmae_lab.data.video_lists.folders import Listing, cells_of_files, is_video, listed_files
from vmae_lab.data.video_lists.formats import (
    ADD_LABELLED,
    Cells,
    Faults,
    ListError,
    absolute,
    list_path,
    read_file,
    whole_numbers,
)
from vmae_lab.data.video_lists.labels import AS_NAMES, read_labels
from vmae_lab.utils.atomic_io import readable
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of

LEAST = {"frames": 1, "bytes": 0, "offset": 0, "size": 1}  # smallest allowed values


@dataclass(frozen=True)
class VideoList:
    """The checked videos of one list. Whether their files exist is not checked.

    `table`, in the order of the list:
    - `path` (str), relative to `root`; `line` (int64), 0 for folders and globs;
    - `label` (int64), -1 without labels;
    - `start` (int64), number of the first frame in a folder of frames; `total` (int64), its frames, -1 for a video file;
    - optional: `offset` and `size` (int64, bytes of a video inside `path`), and the results of a check: `frames` and `bytes`
      (int64), `decoder` (str).

    `classes`: names in label order, `("0", "1", ...)` if labels are numbers, `()` without labels. `skipped`: a message about
    skipped files in a folder, or empty.
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
    """Read the videos of one list. Its paths are relative to `root`. The content decides which of these forms it has:

    - text lines, separated by spaces or commas: with labels `path label` or `path total_frames label`, without labels `path` or
      `path start_index total_frames`;
    - a table with the column `path` (or `video_path`, `video`, `filename`), separated by commas, semicolons or tabs, or
      Parquet. Optional columns: `label` (number or name), `class_index`, `lost_classes`, `start`, `total`, `frames`, `bytes`,
      `decoder`, `offset` with `size`, `path_escaped`. Others are ignored;
    - a folder (the class is the first folder in it) or a glob (the class is the folder that contains the video);
    - a single video, without labels.

    `classes`: names in label order, or their number. `labels.py` explains when labels are numbers or names. With
    `follow_links`, linked folders are listed. Warns of skipped links and of classes without a video. Raises ListError with the
    first ten bad lines: bad numbers, unknown classes, repeated videos, paths outside the root.
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
    faults.check(cells.name)
    if table.empty:
        raise ListError(f"{cells.name}: the list is empty")
    notes = listing.skipped(labelled) if listing else []
    if labelled:  # metrics would lack a class without a video
        lacking = [names[i] for i in np.flatnonzero(np.bincount(table["label"], minlength=len(names)) == 0)]
        hint = f" ({AS_NAMES})" if classes is None and 2 * len(lacking) > len(names) else ""
        if lacking:
            notes.append(f"{len(lacking)} of {counted(len(names), 'class')} without a video: {first_of(lacking)}{hint}")
    if notes:
        warnings.warn(readable(f"{cells.name}: {'; '.join(notes)}"), stacklevel=_level_of_caller())
    return VideoList(cells.root, table, names, listing.other_files if listing else "")


def _level_of_caller() -> int:
    """Return the stack level of the code that called this package, for `warnings.warn`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith("vmae_lab."):
        level, frame = level + 1, frame.f_back
    return level


def _read_cells(location: str | Path, root: Path, labelled: bool, follow_links: bool) -> tuple[Cells, Listing | None]:
    """Return the cells of a list and, for a folder or glob, its listing. Raises ListError."""
    if is_url(location):
        raise ListError(f"{location}: {URL}")
    path = list_path(location, root)
    single = False
    try:
        if not path.is_file():
            listing = listed_files(location, root, follow_links)
        elif single := is_video(path):
            listing = Listing(path.parent, [path.name], Counter())
        else:
            return read_file(path, root, labelled), None
    except OSError as error:
        raise ListError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    if listing is None:
        raise ListError(f"there is no list file or folder {path}")
    if labelled and single:
        raise ListError(
            f"{path} is a single video without a label; use a folder with one folder per class, or a list with the columns "
            "path and label"
        )
    return cells_of_files(path, root, listing, labelled), listing


def _check_paths(cells: Cells) -> pd.Series:
    """Return the paths, relative to the root."""
    paths, root = cells.table["path"], cells.root
    cells.faults.add((paths == "").to_numpy(), lambda row: "the path is empty")
    cells.faults.add(paths.str.contains("\0", regex=False).to_numpy(), lambda row: f"the path {paths[row]!r} has a NUL byte")
    windows = paths.str.contains("\\", regex=False).to_numpy(bool, copy=True)
    windows[windows] = [not os.path.lexists(Path(root, path)) for path in paths[windows]]
    cells.faults.add(windows, lambda row: f"there is no {paths[row]!r}; use / between folders, not a backslash")
    if str(root) == root.anchor:  # every path is inside the root of the file system
        return paths.str.lstrip("/")
    outside = (paths.str.startswith("/") | paths.str.contains("..", regex=False)).to_numpy(bool, copy=True)
    outside[outside] = [os.path.isabs(path) or normpath(path).split("/")[0] == ".." for path in paths[outside]]

    def message(row: int) -> str:
        inside = Path(os.path.normpath(paths[row])).is_relative_to(root)
        what = f"is absolute; expected a path relative to the root {root}" if inside else f"is outside the root {root}"
        return f"{paths[row]!r} {what}. For lists of absolute paths, set root: /"

    cells.faults.add(outside, message)
    return paths


def _check_numbers(cells: Cells) -> dict[str, np.ndarray]:
    """Return the columns of whole numbers, int64 `(n,)`. Missing `start` and `total` get defaults."""
    table, faults = cells.table, cells.faults

    def column(name: str, least: int, default: int | np.ndarray | None = None, hint: str = "") -> np.ndarray:
        if name not in table:
            return np.broadcast_to(np.asarray(default), len(table)).astype(np.int64)
        values, good = whole_numbers(table[name], points=default is not None)  # pandas writes integers with gaps as floats
        if default is not None:
            empty = (table[name] == "").to_numpy()
            values, good = np.where(empty, default, values), good | empty
        faults.add(~good, lambda row: f"{name} {table[name][row]!r} is not a whole number")
        faults.add(values < least, lambda row: f"{name} {values[row]} is too small{hint}")
        return values

    if ("offset" in table) != ("size" in table):
        raise ListError(f"{cells.name}: a list with one of the columns offset and size needs the other, too")
    unlabelled = "" if "label" in table else f"; {ADD_LABELLED}"  # `path -1 label` would be read as start -1, total label
    total = column("total", -1, default=-1, hint="; use -1 for a video file")
    faults.add(total == 0, lambda row: f"total is 0, so the folder has no frames{unlabelled}")
    start = column("start", 0, np.where(total > 0, 1, 0), unlabelled)  # the official code counts frames from 1
    others = {name: column(name, least) for name, least in LEAST.items() if name in table}
    return {"start": start, "total": total, **others}


def _check_repeats(table: pd.DataFrame, faults: Faults) -> None:
    """Add videos that are listed twice to the faults, also under two spellings of a path."""
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
        label = f" with label {table['label'][other]}" if table["label"][other] != table["label"][row] else ""
        return f"{paths[row]!r} is already in line {table['line'][other]}{label}"

    faults.add(repeated, message)
