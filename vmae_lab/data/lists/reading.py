"""A list's lines, checked: every bad one is told before anything is decoded."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from posixpath import normpath

import numpy as np
import pandas as pd

from vmae_lab.data.lists.formats import Cells, Faults, ListError, absolute, read_cells, whole_numbers

MOST_CLASSES = 1_000_000  # a larger label is a slip, and would make a head that no memory holds


@dataclass(frozen=True)
class VideoList:
    """Checked videos of one list; whether their files are there is not looked at.

    `table`, in the list's order:
    - `path` (str), relative to `root`; `line` (int64), where it is in the list, 0 for folders and globs;
    - `label` (int64), -1 where unlabelled;
    - `start` (int64), number of the first frame in a folder of frames; `total` (int64), its frames, -1: a video file;
    - where the list has them `offset` and `size` (int64, bytes of a video inside `path`), and what a check saw: `frames`
      and `bytes` (int64), `decoder` (str).

    `classes`: names in label order, `("0", "1", ...)` where labels are numbers, `()` where unlabelled.
    """

    root: Path
    table: pd.DataFrame
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.table)


def read_list(
    location: str | Path, root: str | Path = ".", labelled: bool = False, classes: Sequence[str] | int | None = None
) -> VideoList:
    """The videos of one list, relative to `root`. The form is told by content:

    - lines split by white space, or by commas: `path start_index total_frames` or `path` alone without labels, `path label`
      or `path total_frames label` with them;
    - a table with the column `path` (or `video_path`, `video`, `filename`), split by commas, semicolons or tabs, or Parquet;
      `label` (number or name), `start`, `total`, `frames`, `bytes`, `decoder`, `offset` with `size`; others are passed over;
    - a folder: its videos, each one's class the first folder below it; a glob: the class is the folder that a video is in.

    Labels are numbers where most are; else names, sorted, or in the order of `classes`, which may also be a mere number.
    Raises ListError naming bad lines (the first ten): bad numbers, unknown classes, repeated videos, paths out of the root.
    """
    cells = read_cells(location, absolute(root), labelled)
    faults = cells.faults
    table = pd.DataFrame({"path": _paths(cells)})
    table["label"], names = _labels(cells, classes) if labelled else (np.int64(-1), ())
    for name, column in _numbers(cells).items():
        table[name] = column
    if "decoder" in cells.table:
        table["decoder"] = cells.table["decoder"].astype(str)
    table["line"] = cells.table["line"]
    _check_repeats(table, faults)
    faults.check(cells.place)
    if table.empty:
        raise ListError(f"{cells.place}: the list is empty")
    return VideoList(cells.root, table, names)


def _paths(cells: Cells) -> pd.Series:
    """The checked paths, relative to the root."""
    paths, root = cells.table["path"].astype(str), cells.root
    cells.faults.add((paths == "").to_numpy(), lambda row: "the path is empty")
    cells.faults.add(paths.str.contains("\0", regex=False).to_numpy(), lambda row: f"the path {paths[row]!r} has a NUL byte")
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
    values, good = whole_numbers(table[name])
    if empty is not None:
        left_out = (table[name] == "").to_numpy()
        values, good = np.where(left_out, empty, values), good | left_out
    faults.add(~good, lambda row: f"{name} {table[name][row]!r} is not a whole number")
    return values


def _labels(cells: Cells, classes: Sequence[str] | int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Checked labels, int64 `(n,)`, and the names of all classes."""
    if "label" not in cells.table:
        raise ListError(f"{cells.place} has no column 'label'")
    column, faults = cells.table["label"], cells.faults
    given = None if classes is None or isinstance(classes, int) else tuple(classes)
    numbers, good = whole_numbers(column)
    words = column.astype(str).str.strip()
    if cells.named or _say_names(words[~faults.bad], good[~faults.bad], given):
        return _labels_by_name(words, given, classes, cells)
    faults.add(~good, lambda row: f"label {words[row]!r} is not a whole number" if words[row] else "the label is empty")
    said = classes if isinstance(classes, int) else 0
    limit = len(given) if given else said or MOST_CLASSES
    faults.add((numbers < 0) | (numbers >= limit), lambda row: f"label {words[row]} is outside 0..{limit - 1}")
    count = int(numbers[~faults.bad].max(initial=-1)) + 1 if classes is None else limit
    return numbers, given or numbered(count)


def _say_names(words: pd.Series, whole: np.ndarray, given: tuple[str, ...] | None) -> bool:
    """Whether labels are names: most are no numbers, or they are classes that are called by numbers of their own ("101")."""
    if given and given != numbered(len(given)) and not set(words.unique()).isdisjoint(given):
        return True
    return whole.sum() < len(whole) / 2


def _labels_by_name(
    words: pd.Series, given: tuple[str, ...] | None, classes: Sequence[str] | int | None, cells: Cells
) -> tuple[np.ndarray, tuple[str, ...]]:
    faults = cells.faults
    faults.add((words == "").to_numpy(), lambda row: "the label is empty")
    names = given or tuple(sorted(words[~faults.bad].unique()))
    if isinstance(classes, int) and len(names) != classes:
        raise ListError(f"{cells.place} names {len(names)} classes, where classes says {classes}")
    labels = pd.Index(names).get_indexer(words).astype(np.int64)

    def unknown(row: int) -> str:
        close = get_close_matches(words[row], names, 1, cutoff=0.6)
        return f"there is no class {words[row]!r}" + (f" (did you mean {close[0]!r}?)" if close else "")

    faults.add(labels < 0, unknown)
    return labels, names


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


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(map(str, range(count)))
