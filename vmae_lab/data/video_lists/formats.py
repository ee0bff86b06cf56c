"""The forms of a list file, detected by content, and read into cells; `reading.py` checks what the cells say.

A list file is text in the official code's form, or a table with a header (text or Parquet); `folders.py` has the other forms.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.data.decoding.container import HEAD, container_of
from vmae_lab.utils.atomic_io import local_name, readable, unescaped_name
from vmae_lab.utils.errors import UserError

PATH_COLUMNS = ("path", "video_path", "video", "filename")
OTHER_COLUMNS = (
    "path_escaped",
    "label",
    "class_index",
    "lost_classes",
    "start",
    "total",
    "frames",
    "bytes",
    "decoder",
    "offset",
    "size",
)
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")  # at most what int64 holds
WHOLE_OR_POINT = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")  # also 2.0, as pandas writes whole numbers with gaps
NOT_TEXT = bytes(range(9))  # control characters that no text has


class ListError(UserError, ValueError):
    """A list of videos that is missing, empty or has bad lines: names the file, the lines and what is wrong."""

    def __init__(self, message: str):
        super().__init__(readable(message))


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
            told.append(f"line {self.lines[row]}: {words(int(row))}" if self.lines[row] else words(int(row)))
        count = int(self.bad.sum())
        what = "line" if self.lines.any() else "video"  # a folder has no lines
        raise ListError(f"{place}: {count} bad {what}{'s' * (count > 1)}; " + "; ".join(told))


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
    return Path(os.path.abspath(Path(known_path(root)).expanduser()))


def place_of(location: str | Path, root: Path) -> Path:
    """Where a list is: `location` below `root`, or by itself where it is absolute."""
    return absolute(Path(root, Path(known_path(location)).expanduser()))


def known_path(path: str | Path) -> str:
    """A path of a recipe or of the command line, in the file system's encoding."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return local_name(str(path))
    return str(path)


def read_file(file: Path, root: Path, labelled: bool) -> Cells:
    """The cells of a list file, whose paths start at the absolute folder `root`. Raises ListError, OSError."""
    with open(file, "rb") as stream:
        parquet = stream.read(4) == b"PAR1" or file.suffix.lower() == ".parquet"
    if parquet:
        table = _with_names(_read_parquet(file))
        return Cells(str(file), root, table, Faults(table["line"].to_numpy()))
    lines = read_lines(file)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("# ")), None)
    if first is None:
        raise ListError(f"{file}: the list is empty")
    delimiter = _header_delimiter(lines, first, file)
    table, faults = _table_cells(file, lines, first, delimiter) if delimiter else _official_cells(lines, first, labelled)
    return Cells(str(file), root, _with_names(table), faults)


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text file. Raises ListError, OSError.

    Not `str.splitlines`: it also splits inside names, at U+2028.
    """
    data = file.read_bytes()
    head = data[:HEAD]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) > 3 and not (any(head[1::2]) and any(head[::2]))):
        raise ListError(f"{file} is UTF-16; save the list as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if set(head) & set(NOT_TEXT) or head[:2] == b"\x1f\x8b":
            raise ListError(f"{file} is no list: {_not_text(head)}") from error
        line = data[: error.start].count(b"\n") + 1
        raise ListError(
            f"{file}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the list as UTF-8 (file names that are "
            "not UTF-8 need the column path_escaped, see docs/data.md)"
        ) from error
    # The \r of Windows falls with the white space around a line's pieces; old Macs wrote it alone.
    return text.split("\n" if "\n" in text else "\r")


def _not_text(head: bytes) -> str:
    try:
        return f"its content is a video ({container_of(head)})"
    except ValueError as error:
        return f"it is {error}".replace("it is not a video but ", "it is ")


def _header_delimiter(lines: list[str], first: int, file: Path) -> str | None:
    """What separates the columns of a header, a line with a cell `path` (or another of PATH_COLUMNS); None: no header.

    Raises ListError if a line of names alone has no such cell.
    """
    for delimiter in ",;\t ":
        names = _column_names(name.strip().strip("\"'") for name in lines[first].split(delimiter))
        plain = len(names) > 1 and all(re.fullmatch(r"[A-Za-z_][\w -]*", name) for name in names)
        if any(name in PATH_COLUMNS for name in names) and (delimiter != " " or plain):
            return delimiter
        if plain and delimiter != " ":
            _columns(names, file)
    below = next((line.strip() for line in lines[first + 1 :] if line.strip()), "")
    if re.fullmatch(r"[A-Za-z_]\w*", lines[first].strip()) and os.path.splitext(below)[1]:  # a word above names of files
        _columns([lines[first].strip()], file)
    return None


def _column_names(names: Iterable[object]) -> list[str]:
    return [str(name).strip().lower() for name in names]


def _columns(names: list[str], place: Path) -> dict[str, int]:
    """Where the columns that are read stand among all `names`."""
    path = next((name for name in PATH_COLUMNS if name in names), None)
    if path is None:
        others = ", ".join(PATH_COLUMNS[1:])
        raise ListError(
            f"{place} has no column 'path'; its columns are {', '.join(names)}. Name one of them path (or {others})"
        )
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
    table.attrs["columns"] = names
    table["line"] = np.array(numbers, np.int64)
    faults = Faults(table["line"].to_numpy())
    bad = np.isin(np.arange(len(rows)), list(ragged))
    faults.add(bad, lambda row: f"{ragged[row]} fields, where the header has {len(names)}")
    return table, faults


def _with_names(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with its paths as the file system takes them; where `path_escaped` is 1, without their escapes."""
    paths = [str(path) for path in table["path"]]
    if "path_escaped" in table:
        escaped = whole_numbers(table.pop("path_escaped"), points=True)[0] == 1
        paths = [unescaped_name(path) if one else path for path, one in zip(paths, escaped, strict=True)]
    return table.assign(path=texts(map(local_name, paths)))


def _read_parquet(file: Path) -> pd.DataFrame:
    """A Parquet file's columns: whole numbers as they are, everything else as text, what is missing as empty text."""
    try:
        read = pd.read_parquet(file)
    except (ValueError, OSError) as error:
        raise ListError(f"{file} cannot be read as a Parquet file: {error}") from error
    table = pd.DataFrame({"line": np.arange(1, len(read) + 1)})
    table.attrs["columns"] = _column_names(read.columns)
    for name, place in _columns(_column_names(read.columns), file).items():
        column = read.iloc[:, place].convert_dtypes()  # whole numbers with gaps are stored as floats
        if pd.api.types.is_integer_dtype(column) and column.notna().all() and column.max() < 2**63:
            table[name] = column.to_numpy(np.int64)
            continue
        cells = column.astype("object").where(column.notna(), "").tolist()
        if any(isinstance(cell, list | tuple | dict | np.ndarray) for cell in cells[:1]):
            raise ListError(f"{file}: the column {name!r} has several values per row; one is expected")
        table[name] = texts([os.fsdecode(cell) if isinstance(cell, bytes) else str(cell) for cell in cells])
    return table


def texts(values: Iterable[str]) -> pd.Series:
    """A column of text. Objects if a name is not UTF-8, which pandas' own type of text cannot hold."""
    values = list(values)
    try:
        return pd.Series(values, dtype="str")
    except UnicodeEncodeError:
        return pd.Series(values, dtype=object)


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
    trailing = _trailing_numbers(pieces, labelled)
    count = _form(trailing, labelled)
    words, columns = FORMS[labelled, count]
    table = pd.DataFrame({"line": numbers + 1, "path": _heads(kept, pieces, count, delimiter)})
    for place, name in enumerate(columns):
        table[name] = [piece[place - count] if len(piece) >= count else "" for piece in pieces]
    faults = Faults(table["line"].to_numpy())

    def tell(row: int) -> str:
        hint = ""
        if trailing[row] > count:
            hint = "; a path that ends in a number needs a table with a header (path,label), or quotation marks"
        elif labelled and not trailing[row]:
            hint = "; labels that are names need a table with a header (path,label)"
        return f"'{words}' was expected, got {kept[row][:200]!r}{hint}"

    faults.add(trailing != count, tell)
    return table, faults


def _delimiter(line: str) -> str | None:
    """A comma if a line ends in `,3` and not in ` 3`; else None, white space. `a.mp4, 3` is separated by commas."""
    head, _, number = line.rpartition(",")
    words = line.rsplit(None, 1)
    spaced = len(words) == 2 and WHOLE_OR_POINT.fullmatch(words[1]) and not words[0].endswith(",")
    return "," if head and not spaced and WHOLE_OR_POINT.fullmatch(number.strip()) else None


def _trailing_numbers(pieces: list[list[str]], labelled: bool) -> np.ndarray:
    """How many of a line's last two pieces are whole numbers after a path: int64 `(n,)`, each 0, 1 or 2."""
    last = whole_numbers(pd.Series([piece[-1] if len(piece) > 1 else "" for piece in pieces]), labelled)[1]
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
    """What stands before the last `count` pieces of a line, without the quotation marks around it."""
    if count == 2:
        heads = [piece[0].rstrip() for piece in pieces]
    elif count == 1:
        heads = [line[: len(line) - len(piece[-1])].rstrip() for line, piece in zip(lines, pieces, strict=True)]
    else:
        heads = lines
    heads = heads if delimiter is None else [head.removesuffix(",").rstrip() for head in heads]
    return [_unquoted(head) if head[:1] in ("'", '"') else head for head in heads]


def _unquoted(path: str) -> str:
    mark = path[0]
    return path[1:-1].replace(2 * mark, mark) if len(path) > 1 and path[-1] == mark else path


def whole_numbers(column: pd.Series, points: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers that a column of text or integers says, int64 `(n,)`, and where it says one, bool `(n,)`.

    `points`: 2.0 is one too.
    """
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(np.int64), np.ones(len(column), bool)
    codes, words = pd.factorize(column.to_numpy(object))  # few words are different, so that each is read once
    found = [(WHOLE_OR_POINT if points else WHOLE_NUMBER).fullmatch(word.strip()) for word in words]
    good = np.array([match is not None for match in found], bool)
    values = np.array([int(match[0].split(".")[0]) if match else 0 for match in found], np.int64)
    return values[codes], good[codes]
