"""The forms in which a list of videos comes, told by content, and read into cells; `reading.py` checks what the cells say.

A list is a text file in the official code's form, a table with a header (text or Parquet), a folder or a glob.
"""

import csv
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".wmv", ".flv", ".ts", ".mts", ".mpg", ".mpeg", ".3gp", ".ogv", ".gif")
)
PATH_COLUMNS = ("path", "video_path", "video", "filename")
OTHER_COLUMNS = ("label", "start", "total", "frames", "bytes", "decoder", "offset", "size")
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")  # at most what int64 holds


class ListError(ValueError):
    """A list of videos that is missing, empty or has bad lines: names the file, the lines and what is wrong."""


class Faults:
    """Bad lines as checks find them: the first thing wrong with a line counts, words are made for the first ten lines."""

    def __init__(self, lines: np.ndarray):
        self.lines = lines
        self.bad = np.zeros(len(lines), bool)
        self._found: list[tuple[np.ndarray, Callable[[int], str]]] = []

    def add(self, bad: np.ndarray, words: Callable[[int], str]) -> None:
        """Count the rows of a mask `(n,)` that were not bad before; `words` tells what is wrong with a row."""
        new = bad & ~self.bad
        if new.any():
            self._found.append((new, words))
            self.bad |= new

    def check(self, place: str) -> None:
        """Raise ListError with the number of bad lines and the first ten of them, if there are any."""
        if not self.bad.any():
            return
        told = []
        for row in np.flatnonzero(self.bad)[:10]:
            words = next(words for rows, words in self._found if rows[row])
            told.append(f"line {self.lines[row]}: {words(int(row))}")
        count = int(self.bad.sum())
        raise ListError(f"{place}: {count} bad line{'s' * (count > 1)}; " + "; ".join(told))


@dataclass(frozen=True)
class Cells:
    """What a list says, unchecked: `table` has `line` (int64), `path` (text) and whichever of OTHER_COLUMNS it has, as text
    or int64. `place` names the list in messages; paths start at `root`; rows in `faults` are of no form and hold blanks.
    `named`: labels are names of folders, also where they look like numbers.
    """

    place: str
    root: Path
    table: pd.DataFrame
    faults: Faults
    named: bool = False


def absolute(root: str | Path) -> Path:
    """A root as it is used: `~` expanded, absolute, `..` resolved by name."""
    return Path(os.path.abspath(Path(root).expanduser()))


def place_of(location: str | Path, root: Path) -> Path:
    """Where a list is: `location` below `root`, or by itself where it is absolute."""
    return absolute(Path(root, Path(location).expanduser()))


def read_cells(location: str | Path, root: Path, labelled: bool) -> Cells:
    """The cells of the list at `location`, relative to the absolute folder `root`. Raises ListError."""
    place = place_of(location, root)
    try:
        if place.is_file():
            return _read_file(place, root, labelled)
        listed = listed_files(location, root)
    except OSError as error:
        raise ListError(f"cannot read {place}: {error.strerror or error}") from error
    if listed is None:
        raise ListError(f"there is no list file or folder {place}")
    return _cells_of_files(place, root, *listed, labelled)


def listed_files(location: str | Path, root: Path) -> tuple[Path, list[str]] | None:
    """A folder, and the sorted paths below it that a folder or a glob lists; None where `location` is neither.

    Hidden files and folders are passed over. Neither a folder nor `**` follows links to folders: a loop would list its videos
    many times. Raises ListError for what is no pattern, OSError for a folder that cannot be read.
    """
    place = place_of(location, root)
    if place.is_dir():
        return place, sorted(_walk(place))
    parts = Path(location).expanduser().parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    if first is None:
        return None
    base = place_of(Path(*parts[:first]), root)
    try:
        found = [path.relative_to(base).as_posix() for path in base.glob("/".join(parts[first:])) if path.is_file()]
    except ValueError as error:
        raise ListError(f"{place} is no pattern of paths: {error}") from error
    return base, sorted(path for path in found if not re.search(r"(^|/)\.", path))


def named_videos(folder: Path) -> Mapping[str, list[os.DirEntry]]:
    """What may be the video of a name: files with a video's suffix, without it, and folders."""
    places = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            places[entry.name].append(entry)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            places[Path(entry.name).stem].append(entry)
    return places


def _walk(folder: Path) -> Iterable[str]:
    def refuse(error: OSError) -> None:  # else its videos would be missing without a word
        raise error

    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = "" if where == str(folder) else Path(where).relative_to(folder).as_posix() + "/"
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
                yield prefix + name


def _cells_of_files(place: Path, root: Path, base: Path, paths: list[str], labelled: bool) -> Cells:
    """A folder's or glob's files: one outside the root starts its own. Labels are names of folders."""
    folder = place.is_dir()
    if not paths:
        what = f"no video files ({' '.join(sorted(VIDEO_SUFFIXES))}) below" if folder else "no files match"
        raise ListError(f"{what} {place}")
    loose = [path for path in paths if "/" not in path]
    if labelled and folder and loose:
        raise ListError(
            f"{len(loose)} files are directly in {place}, as {', '.join(loose[:10])}: a labelled folder has one folder a class"
        )
    if base.is_relative_to(root):
        prefix = base.relative_to(root).as_posix() + "/" if base != root else ""
    else:
        root, prefix = base, ""
    table = pd.DataFrame({"line": np.zeros(len(paths), np.int64), "path": [prefix + path for path in paths]})
    if labelled:
        table["label"] = [path.split("/")[0] if folder else Path(base, path).parent.name for path in paths]
    return Cells(str(place), root, table, Faults(table["line"].to_numpy()), named=True)


def _read_file(file: Path, root: Path, labelled: bool) -> Cells:
    with open(file, "rb") as stream:
        parquet = stream.read(4) == b"PAR1" or file.suffix.lower() == ".parquet"
    if parquet:
        table = _read_parquet(file)
        return Cells(str(file), root, table, Faults(table["line"].to_numpy()))
    lines = _read_lines(file)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("# ")), None)
    if first is None:
        raise ListError(f"{file}: the list is empty")
    delimiter = _header_delimiter(lines[first])
    table, faults = _table_cells(file, lines, first, delimiter) if delimiter else _official_cells(lines, first, labelled)
    return Cells(str(file), root, table, faults)


def _read_lines(file: Path) -> list[str]:
    """The lines of a text file. Not `str.splitlines`: it also splits inside names, at U+2028."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ListError(f"{file}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the list as UTF-8") from error
    return text.split("\n")  # the \r of Windows falls with the white space around a line's pieces


def _header_delimiter(line: str) -> str | None:
    """What parts the columns of a header, which is a line with a cell `path` (or another of PATH_COLUMNS); None: no header."""
    for delimiter in ",;\t":
        names = _column_names(name.strip('"') for name in line.split(delimiter))
        if any(name in PATH_COLUMNS for name in names):
            return delimiter
    return None


def _column_names(names: Iterable[object]) -> list[str]:
    return [str(name).strip().lower() for name in names]


def _columns(names: list[str], place: Path) -> dict[str, int]:
    """Where the columns that are read stand among all `names`."""
    path = next((name for name in PATH_COLUMNS if name in names), None)
    if path is None:
        raise ListError(f"{place} has no column 'path'; its columns are {', '.join(names)}")
    return {"path": names.index(path)} | {name: names.index(name) for name in OTHER_COLUMNS if name in names}


def _table_cells(file: Path, lines: list[str], first: int, delimiter: str) -> tuple[pd.DataFrame, Faults]:
    """The rows below a header, with csv's quoting. A row of another length than the header is a fault."""
    reader = csv.reader((line + "\n" for line in islice(lines, first, None)), delimiter=delimiter, strict=True)
    names = _column_names(next(reader))
    columns = _columns(names, file)
    numbers, rows, ragged = list[int](), list[list[str]](), dict[int, int]()
    ended = first + 1  # the last line of the row before
    try:
        for row in reader:
            ended = first + reader.line_num
            if not any(row) or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(names):
                ragged[len(rows)] = len(row)
                row = [""] * len(names)
            numbers.append(ended)
            rows.append([row[i] for i in columns.values()])
    except csv.Error as error:
        raise ListError(f"{file}, line {ended + 1}: {error} (is a quotation mark left open?)") from error
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    table["line"] = np.array(numbers, np.int64)
    faults = Faults(table["line"].to_numpy())
    bad = np.isin(np.arange(len(rows)), list(ragged))
    faults.add(bad, lambda row: f"{ragged[row]} fields, where the header has {len(names)}")
    return table, faults


def _read_parquet(file: Path) -> pd.DataFrame:
    """A Parquet file's columns: whole numbers as they are, everything else as text, what is missing as empty text."""
    try:
        read = pd.read_parquet(file)
    except (ValueError, OSError) as error:
        raise ListError(f"{file} cannot be read as a Parquet file: {error}") from error
    table = pd.DataFrame({"line": np.arange(1, len(read) + 1)})
    for name, place in _columns(_column_names(read.columns), file).items():
        column = read.iloc[:, place].convert_dtypes()  # whole numbers with gaps are stored as floats
        whole = pd.api.types.is_integer_dtype(column) and column.notna().all()
        table[name] = column.to_numpy(np.int64) if whole else column.astype("object").where(column.notna(), "").map(str).array
    return table


FORMS = {  # by whether the list is labelled and the numbers after the path
    (False, 2): ("path start_index total_frames", ["start", "total"]),
    (False, 0): ("path", []),
    (True, 2): ("path total_frames label", ["total", "label"]),
    (True, 1): ("path label", ["label"]),
}


def _official_cells(lines: list[str], first: int, labelled: bool) -> tuple[pd.DataFrame, Faults]:
    """The official code's lists, split from the right, so that paths may hold spaces.

    All lines are of one form, the one that most are of. A line with one number more is bad, not a path that ends in a number:
    `clip 12 3` in a list of `path label` may be frame folders by mistake. Such paths need a table with a header.
    """
    numbers = np.array([i for i, line in enumerate(lines) if i >= first and not line.isspace() and line], np.int64)
    kept = [lines[i].strip() for i in numbers]
    delimiter = _delimiter(kept[0])
    pieces = [line.rsplit(delimiter, 2) for line in kept]
    trailing = _trailing_numbers(pieces)
    count = _form(trailing, labelled)
    words, columns = FORMS[labelled, count]
    table = pd.DataFrame({"line": numbers + 1, "path": _heads(kept, pieces, count, delimiter)})
    for place, name in enumerate(columns):
        table[name] = [piece[place - count] if len(piece) >= count else "" for piece in pieces]
    faults = Faults(table["line"].to_numpy())
    hint = "; a path that ends in a number needs a table with a header (path,label)"

    def tell(row: int) -> str:
        return f"'{words}' was expected, got {kept[row][:200]!r}" + (hint if trailing[row] > count else "")

    faults.add(trailing != count, tell)
    return table, faults


def _delimiter(line: str) -> str | None:
    """A comma where a line ends in `,3` and not in ` 3`; else None, white space. `a.mp4, 3` is parted by commas."""
    head, _, number = line.rpartition(",")
    words = line.rsplit(None, 1)
    spaced = len(words) == 2 and WHOLE_NUMBER.fullmatch(words[1]) and not words[0].endswith(",")
    return "," if head and not spaced and WHOLE_NUMBER.fullmatch(number.strip()) else None


def _trailing_numbers(pieces: list[list[str]]) -> np.ndarray:
    """How many of a line's last two pieces are whole numbers after a path: int64 `(n,)`, each 0, 1 or 2."""
    last = whole_numbers(pd.Series([piece[-1] if len(piece) > 1 else "" for piece in pieces]))[1]
    second = whole_numbers(pd.Series([piece[1] if len(piece) > 2 else "" for piece in pieces]))[1]
    return last.astype(np.int64) + (last & second)


def _form(trailing: np.ndarray, labelled: bool) -> int:
    """Numbers after the path in most lines; where two forms tie, the first line's, or that of the official lists."""
    official, other = (1, 2) if labelled else (2, 0)
    counts = np.bincount(trailing, minlength=3)
    if counts[other] == counts[official]:
        return other if trailing[0] == other else official
    return other if counts[other] > counts[official] else official


def _heads(lines: list[str], pieces: list[list[str]], count: int, delimiter: str | None) -> list[str]:
    """What stands before the last `count` pieces of a line; between commas it may be quoted."""
    if count == 2:
        heads = [piece[0].rstrip() for piece in pieces]
    elif count == 1:
        heads = [line[: len(line) - len(piece[-1])].rstrip() for line, piece in zip(lines, pieces, strict=True)]
    else:
        heads = lines
    return heads if delimiter is None else [_unquoted(head) for head in heads]


def _unquoted(path: str) -> str:
    path = path.removesuffix(",").rstrip()
    return path[1:-1].replace('""', '"') if len(path) > 1 and path[0] == path[-1] == '"' else path


def whole_numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers that a column of text or integers says, int64 `(n,)`, and where it says one, bool `(n,)`."""
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(np.int64), np.ones(len(column), bool)
    codes, words = pd.factorize(column.to_numpy(object))  # few words are different, so that each is read once
    found = [WHOLE_NUMBER.fullmatch(word.strip()) for word in words]
    good = np.array([match is not None for match in found], bool)
    values = np.array([int(match[0]) if match else 0 for match in found], np.int64)
    return values[codes], good[codes]
