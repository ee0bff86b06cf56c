"""Formats of list files: text as in the official code, or a table (csv or Parquet). The content decides.

`read_file` reads a file into cells, which `reader.py` checks. `write_list` writes a table. Folders and globs are in
`folders.py`.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.data.decoding.container import HEAD, container_of
from vmae_lab.utils.atomic_io import escaped_name, local_name, readable, unescaped_name, utf8_name, write_text
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import SHOWN, UserError, first_of

PATH_COLUMNS = ("path", "video_path", "video", "filename")
OTHER_COLUMNS = (
    "path_escaped", "label", "class_index", "lost_classes", "start", "total", "frames", "bytes", "decoder", "offset", "size"
)  # fmt: skip
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")  # fits into int64
WHOLE_OR_POINT = re.compile(rf"({WHOLE_NUMBER.pattern})(?:\.0*)?")  # also 2.0: pandas writes integers with gaps as floats
ADD_LABELLED = "if the list has labels, add --labelled (data.lists.pretrain of a recipe takes lists without labels)"
NOT_TEXT = bytes(range(9))  # control characters that do not occur in text


class ListError(UserError, ValueError):
    """A list is missing, empty or has bad lines. The message names the file, the lines and their faults."""

    def __init__(self, message: str):
        super().__init__(readable(message))


class Faults:
    """Collects bad lines. Only the first fault of a line counts. Messages are created only for the lines that are shown."""

    def __init__(self, lines: np.ndarray):
        self.lines = lines
        self.bad = np.zeros(len(lines), bool)
        self._found: list[tuple[np.ndarray, Callable[[int], str]]] = []

    def add(self, bad: np.ndarray, message: Callable[[int], str]) -> None:
        """Mark the rows of a mask `(n,)` as bad. `message` maps a row to its fault."""
        new = bad & ~self.bad
        if new.any():
            self._found.append((new, message))
            self.bad |= new

    def check(self, name: str, remedy: str = "") -> None:
        """Raise ListError with the number of bad lines, the first ten of them and the remedy, if there are any."""
        if not self.bad.any():
            return
        messages = []
        for row in np.flatnonzero(self.bad)[:SHOWN].tolist():
            message = next(message for rows, message in self._found if rows[row])(row)
            messages.append(f"line {self.lines[row]}: {message}" if self.lines[row] else message)
        count = int(self.bad.sum())
        what = "line" if self.lines.any() else "video"  # folders have no lines
        end = f". {remedy}" if remedy else ""
        raise ListError(f"{name}: {counted(count, f'bad {what}')}; {first_of(messages, '; ', count)}{end}")


def check_faults(file: Path, faults: Sequence[str]) -> None:
    """Raise ListError with the number of faults and the first ten of them, if there are any."""
    if faults:
        raise ListError(f"{file}: {counted(len(faults), 'fault')}; {first_of(faults, '; ')}")


@dataclass(frozen=True)
class Cells:
    """The unchecked content of a list.

    `table`: `line` (int64), `path` (str), and the OTHER_COLUMNS of the list as str or int64. Paths are relative to `root`.
    `name`: of the list, for messages. `faults`: malformed lines, whose cells are empty. `named`: labels are folder
    names, even if they look like numbers.
    """

    name: str
    root: Path
    table: pd.DataFrame
    faults: Faults
    named: bool = False


def absolute(root: str | Path) -> Path:
    """Return an absolute path, with `~` expanded and `..` resolved by name."""
    return Path(os.path.abspath(Path(known_path(root)).expanduser()))


def list_path(location: str | Path, root: Path) -> Path:
    """Return the absolute path of a list. A relative `location` starts at `root`."""
    return absolute(Path(root, Path(known_path(location)).expanduser()))


def known_path(path: str | Path) -> str:
    """Return a path from the config or the command line in the encoding of the file system."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return local_name(str(path))
    return str(path)


def texts(values: Iterable[str]) -> pd.Series:
    """Return a column of text. If a name is not UTF-8, its type is object, because pandas' str type needs UTF-8."""
    values = list(values)
    try:
        return pd.Series(values, dtype="str")
    except UnicodeEncodeError:
        return pd.Series(values, dtype=object)


def whole_numbers(column: pd.Series, points: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Parse a column of text or integers. Return its whole numbers, int64 `(n,)`, and which cells are valid, bool `(n,)`.

    With `points`, 2.0 is a whole number, too.
    """
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(np.int64), np.ones(len(column), bool)
    codes, distinct = pd.factorize(column.to_numpy(object))  # parse each distinct text once
    found = [(WHOLE_OR_POINT if points else WHOLE_NUMBER).fullmatch(text.strip()) for text in distinct]
    good = np.array([match is not None for match in found], bool)
    values = np.array([int(match[0].split(".")[0]) if match else 0 for match in found], np.int64)
    return values[codes], good[codes]


# ----------------------------------------------------------------------------------------------------------------------
# Files


def read_file(file: Path, root: Path, labelled: bool) -> Cells:
    """Read a list file. Its paths are relative to the absolute folder `root`. Raises ListError, OSError."""
    with open(file, "rb") as stream:
        parquet = stream.read(4) == b"PAR1" or file.suffix.lower() == ".parquet"
    faults = None
    if parquet:
        table = _read_parquet(file)
    else:
        lines = read_lines(file)
        first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("# ")), None)
        if first is None:
            raise ListError(f"{file}: the list is empty")
        delimiter = _header_delimiter(lines, first, file)
        table, faults = _read_table(file, lines, first, delimiter) if delimiter else _read_official(lines, first, labelled)
    paths = [str(path) for path in table["path"]]
    if "path_escaped" in table:
        escaped = whole_numbers(table.pop("path_escaped"), points=True)[0] == 1
        paths = [unescaped_name(path) if is_escaped else path for path, is_escaped in zip(paths, escaped, strict=True)]
    return Cells(str(file), root, table.assign(path=texts(map(local_name, paths))), faults or Faults(table["line"].to_numpy()))


def read_lines(file: Path) -> list[str]:
    """Read the lines of a UTF-8 text file. Raises ListError, OSError.

    `str.splitlines` is not used, because it also splits at U+2028, which may occur in names.
    """
    data = file.read_bytes()
    head = data[:HEAD]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(head) > 3 and not (any(head[1::2]) and any(head[::2]))):
        raise ListError(f"{file} is encoded in UTF-16; save the list as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if set(head) & set(NOT_TEXT) or head[:2] == b"\x1f\x8b":
            try:
                content = f"it is a video ({container_of(head)})"
            except ValueError as other:
                content = str(other).replace("not a video but", "it is")
            raise ListError(f"{file} is not a list: {content}") from error
        line = data[: error.start].count(b"\n") + 1
        raise ListError(
            f"{file}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the list as UTF-8 (file names that are "
            "not UTF-8 need the column path_escaped, see docs/data.md)"
        ) from error
    # The \r of Windows is stripped with the spaces around a cell. Old Mac files have only \r.
    return text.split("\n" if "\n" in text else "\r")


# ----------------------------------------------------------------------------------------------------------------------
# Tables with a header


def _header_delimiter(lines: list[str], first: int, file: Path) -> str | None:
    """Return the delimiter of a header with one of PATH_COLUMNS, or None if there is no header.

    Raises ListError for a header without such a column.
    """
    for delimiter in ",;\t ":
        names = _column_names(name.strip().strip("\"'") for name in lines[first].split(delimiter))
        plain = len(names) > 1 and all(re.fullmatch(r"[A-Za-z_][\w -]*", name) for name in names)
        if any(name in PATH_COLUMNS for name in names) and (delimiter != " " or plain):
            return delimiter
        if plain and delimiter != " ":
            _columns(names, file)
    below = next((line.strip() for line in lines[first + 1 :] if line.strip()), "")
    if re.fullmatch(r"[A-Za-z_]\w*", lines[first].strip()) and os.path.splitext(below)[1]:  # a single word above file names
        _columns([lines[first].strip()], file)
    return None


def _column_names(names: Iterable[object]) -> list[str]:
    return [str(name).strip().lower() for name in names]


def _columns(names: list[str], file: Path) -> dict[str, int]:
    """Return the positions of the known columns among `names`. Raises ListError."""
    path = next((name for name in PATH_COLUMNS if name in names), None)
    if path is None:
        others = ", ".join(PATH_COLUMNS[1:])
        raise ListError(
            f"{file} has no column 'path'; its columns are {', '.join(names)}. Rename one of them to path (or {others})"
        )
    return {"path": names.index(path)} | {name: names.index(name) for name in OTHER_COLUMNS if name in names}


def _read_table(file: Path, lines: list[str], first: int, delimiter: str) -> tuple[pd.DataFrame, Faults]:
    """Read the rows below a header as csv. A row with another number of fields than the header is a fault."""
    reader = csv.reader((line + "\n" for line in islice(lines, first, None)), delimiter=delimiter, strict=True)
    names = _column_names(next(reader))
    columns = _columns(names, file)
    numbers, rows, ragged = list[int](), list[list[str]](), dict[int, int]()
    end = first + 1  # last line of the previous row
    try:
        for row in reader:
            end = first + reader.line_num
            if not any(row) or (len(row) == 1 and not row[0].strip()):
                continue
            if len(row) != len(names):
                ragged[len(rows)] = len(row)
                row = [""] * len(names)
            numbers.append(end)
            rows.append([row[i] for i in columns.values()])
    except csv.Error as error:
        raise ListError(f"{file}, line {end + 1}: {error} (check for an unclosed quotation mark)") from error
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    table.attrs["columns"] = names
    table["line"] = np.array(numbers, np.int64)
    faults = Faults(table["line"].to_numpy())
    bad = np.isin(np.arange(len(rows)), list(ragged))
    faults.add(bad, lambda row: f"{counted(ragged[row], 'field')}; the header has {len(names)}")
    return table, faults


def _read_parquet(file: Path) -> pd.DataFrame:
    """Read a Parquet file: whole numbers as int64, other columns as text, missing values as empty text. Raises ListError."""
    try:
        read = pd.read_parquet(file)
    except (ValueError, OSError) as error:
        raise ListError(f"{file} cannot be read as a Parquet file: {error}") from error
    table = pd.DataFrame({"line": np.arange(1, len(read) + 1)})
    table.attrs["columns"] = _column_names(read.columns)
    for name, position in _columns(table.attrs["columns"], file).items():
        column = read.iloc[:, position].convert_dtypes()  # whole numbers with gaps are stored as floats
        if pd.api.types.is_integer_dtype(column) and column.notna().all() and column.max() < 2**63:
            table[name] = column.to_numpy(np.int64)
            continue
        cells = column.astype("object").where(column.notna(), "").tolist()
        if any(isinstance(cell, list | tuple | dict | np.ndarray) for cell in cells[:1]):
            raise ListError(f"{file}: the column {name!r} has several values per row; expected one")
        table[name] = texts([os.fsdecode(cell) if isinstance(cell, bytes) else str(cell) for cell in cells])
    return table


def write_list(file: Path, table: pd.DataFrame, classes: Sequence[str] = ()) -> None:
    """Write videos as csv for `read_list`: the column `path` and any others. Numbers in `label` index `classes`.

    In the file, `label` is the name of the class and `class_index` its number, so that names that look like numbers stay names.
    Classes without a row are in the first cell of `lost_classes`, as a JSON object of numbers and names. Paths that are not
    UTF-8 are escaped, and their `path_escaped` is 1.
    """
    paths = [utf8_name(path) for path in table["path"]]
    odd = [readable(path) != path for path in paths]
    written = table.assign(path=[escaped_name(path) if is_odd else path for path, is_odd in zip(paths, odd, strict=True)])
    if any(odd):
        written["path_escaped"] = np.array(odd, int)
    if "label" in table:
        written = written.assign(label=[classes[label] for label in table["label"]], class_index=table["label"])
        used = set(table["label"])
        lost = {number: name for number, name in enumerate(classes) if number not in used}
        if lost and len(table):
            written["lost_classes"] = [json.dumps(lost), *[""] * (len(table) - 1)]
    text = written.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # csv does not quote it, but it would end the line
        text = written.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(file, text)


# ----------------------------------------------------------------------------------------------------------------------
# The official code's text form

FORMS = {  # (whether the list is labeled, count of numbers after the path) -> form and column names
    (False, 2): ("path start_index total_frames", ["start", "total"]),
    (False, 0): ("path", []),
    (True, 2): ("path total_frames label", ["total", "label"]),
    (True, 1): ("path label", ["label"]),
}


def _read_official(lines: list[str], first: int, labelled: bool) -> tuple[pd.DataFrame, Faults]:
    """Read a list in the official code's format. Lines are split from the right, so that paths may contain spaces.

    All lines must have the form of the majority. A line with one more number is an error, not a path that ends in a number:
    `clip 12 3` in a list of `path label` may be a folder of frames by mistake. Paths that end in a number need a table with a
    header.
    """
    numbers = np.array([i for i, line in enumerate(lines) if i >= first and line.strip()], np.int64)
    kept = [lines[i].strip() for i in numbers]
    between = r",\s*" if _has_commas(kept[0]) else r"\s"
    number = WHOLE_NUMBER.pattern
    ending = re.compile(rf"(.*){between}({number})", re.DOTALL)
    last_ending = re.compile(rf"(.*){between}({number}(?:\.0*)?)", re.DOTALL) if labelled else ending
    pieces = []
    for line in kept:
        match = last_ending.fullmatch(line)
        path, last = (match[1].rstrip(), match[2]) if match else (line, "")
        match = ending.fullmatch(path) if match else None
        path, second = (match[1].rstrip(), match[2]) if match else (path, "")
        pieces.append((path, second, last))
    trailing = np.array([(second != "") + (last != "") for _, second, last in pieces], np.int64)
    count = _most_frequent_form(trailing, labelled)
    form, columns = FORMS[labelled, count]
    table = pd.DataFrame({"line": numbers + 1, "path": [_unquoted(path) for path, _, _ in pieces]})
    for position, name in enumerate(columns, start=-count):
        table[name] = [piece[position] for piece in pieces]
    faults = Faults(table["line"].to_numpy())

    def message(row: int) -> str:
        hint = ""
        if trailing[row] > count and (labelled or trailing[row] != 1):
            hint = "; if a path ends in a number, use quotation marks or a table with a header (path,label)"
        elif labelled and not trailing[row]:
            hint = "; if labels are names, use a table with a header (path,label)"
        elif not labelled and trailing[row]:
            hint = f"; {ADD_LABELLED}"
        return f"expected '{form}', got {kept[row][:200]!r}{hint}"

    faults.add(trailing != count, message)
    return table, faults


def _has_commas(line: str) -> bool:
    """Return whether a line is separated by commas: it ends in `,3` or `, 3`, not in ` 3`."""
    head, _, number = line.rpartition(",")
    parts = line.rsplit(None, 1)
    spaced = len(parts) == 2 and WHOLE_OR_POINT.fullmatch(parts[1]) and not parts[0].endswith(",")
    return bool(head and not spaced and WHOLE_OR_POINT.fullmatch(number.strip()))


def _most_frequent_form(trailing: np.ndarray, labelled: bool) -> int:
    """Return the count of numbers in most lines. In a tie, the form of the first line wins, else the official form."""
    official, other = (1, 2) if labelled else (2, 0)
    counts = np.bincount(trailing, minlength=3)
    if counts[other] == counts[official]:
        return other if trailing[0] == other else official
    return other if counts[other] > counts[official] else official


def _unquoted(path: str) -> str:
    mark = path[:1]
    quoted = len(path) > 1 and mark in ("'", '"') and path[-1] == mark
    return path[1:-1].replace(2 * mark, mark) if quoted else path
