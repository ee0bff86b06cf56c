"""Boxes of people in key frames, with what each does: the CSV files of AVA, read and checked.

No file has a header. Ground truth: `video, timestamp, x1, y1, x2, y2, action_id, person_id`; detections the same with `score`
last; a person detector's boxes with the action left blank. Times are seconds, corners parts of the frame's width and height.
A key frame's time counts to the microsecond, as in ActivityNet's script, so that it is the same when written and read again.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.formats import Faults, ListError, whole_numbers
from vmae_lab.utils.atomic_io import atomic_write

CORNERS = ["x1", "y1", "x2", "y2"]
COLUMNS = ["video", "timestamp", *CORNERS, "action_id"]
KEY = ["video", "timestamp"]
WHOLE = ("action_id", "person_id")
DIGITS = 6  # after the point of a second
# Of a pbtxt: a comment, a string in double or single quotation marks, a word or number, or a sign.
TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[^\s{}<>:;,\[\]"'#]+|\S""")
OVERSHOOT = 1e-3  # by which a detector's rounding may leave [0, 1]


def read_ground_truth(file: Path, actions: Collection[int] | None = None) -> pd.DataFrame:
    """What people do in key frames, a row each: COLUMNS and `person_id` (-1 where the file has none).

    Raises ListError with the lines that are malformed: too few columns, corners outside [0, 1] or not in order, an action
    that is not among `actions` where those are given.
    """
    table, faults = _numbers(file, [*COLUMNS, "person_id"], optional="person_id")
    faults.add(_outside(table), lambda row: f"the box {_corners(table, row)} is not inside [0, 1]")
    faults.add(_inverted(table), lambda row: f"the box {_corners(table, row)} has no area: x1 < x2 and y1 < y2 are expected")
    known = table.action_id.isin(list(actions)).to_numpy() if actions is not None else np.ones(len(table), bool)
    faults.add(~known, lambda row: f"action_id {table.action_id[row]} is not in the label map")
    faults.check(str(file))
    return table


def read_detections(file: Path) -> pd.DataFrame:
    """What a model said, a row each: COLUMNS and `score`. Boxes are as they stand: the evaluation drops those without area.

    Raises ListError with the lines that are malformed.
    """
    table, faults = _numbers(file, [*COLUMNS, "score"])
    faults.check(str(file))
    return table


def write_detections(file: Path, detections: pd.DataFrame) -> None:
    """Write what a model said as AVA's evaluation takes it, whole or not at all: COLUMNS and `score`, no header."""
    table = detections[[*COLUMNS, "score"]].assign(timestamp=keyed(detections).timestamp.map(_written))
    with atomic_write(file) as temporary:
        table.to_csv(temporary, header=False, index=False, float_format="%.6f")


def write_person_boxes(file: Path, boxes: pd.DataFrame) -> None:
    """Write a person detector's boxes as `read_person_boxes` takes them: detections whose action is left blank."""
    write_detections(file, boxes.assign(action_id=""))


def read_person_boxes(file: Path) -> pd.DataFrame:
    """A person detector's boxes: KEY, CORNERS and `score`; an action in the file is not read.

    What is outside [0, 1] by no more than rounding is cut. Raises ListError with the lines that are malformed.
    """
    table, faults = _numbers(file, [*COLUMNS, "score"], unread="action_id")
    faults.add(_outside(table, OVERSHOOT), lambda row: f"the box {_corners(table, row)} is not inside [0, 1]")
    unsure = (table.score < -OVERSHOOT) | (table.score > 1 + OVERSHOOT)
    faults.add(unsure.to_numpy(), lambda row: f"score {table.score[row]:g} is not between 0 and 1")
    cut = table.assign(**{name: table[name].clip(0, 1) for name in (*CORNERS, "score")})
    faults.add(_inverted(cut), lambda row: f"the box {_corners(cut, row)} has no area: x1 < x2 and y1 < y2 are expected")
    faults.check(str(file))
    return cut


def keyed(rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows, their timestamps to the microsecond: two that mean one key frame are then equal."""
    return rows.assign(timestamp=rows.timestamp.astype(float).round(DIGITS) + 0.0)  # no -0


def read_excluded(file: Path) -> pd.DataFrame:
    """Key frames that are left out: KEY. Raises ListError."""
    table, faults = _numbers(file, KEY)
    faults.check(str(file))
    return table


def read_label_map(file: Path) -> dict[int, str]:
    """Names of actions by their number, from a label map: `item { name: "…" id: 1 }` or, as AVA's list of all 80,
    `label { name: "…" label_id: 1 … }` (pbtxt, blocks at any depth), or a csv of numbers and names.

    Raises ListError with the lines that are malformed.
    """
    text, faults = _text(file), list[str]()
    entries = list(_items(text, faults) if file.suffix == ".pbtxt" else _named_numbers(text, faults))
    lines = dict[int, list[int]]()
    for line, number, _ in entries:
        lines.setdefault(number, []).append(line)
    faults += [
        f"it gives one number to several actions: {number}, in lines {', '.join(map(str, several))}"
        for number, several in lines.items()
        if len(several) > 1
    ]
    if faults:
        raise ListError(f"{file}: {len(faults)} fault{'s' * (len(faults) > 1)}; " + "; ".join(faults[:10]))
    if not entries:
        raise ListError(f"{file} names no action")
    return {number: name for _, number, name in entries}


def _named_numbers(text: str, faults: list[str]) -> Iterator[tuple[int, int, str]]:
    """Line, number and name of each row of a csv, whose first row may be a header."""
    rows = [(number, line.split(",", 1)) for number, line in enumerate(text.split("\n"), 1) if line.strip() and line[0] != "#"]
    for place, (line, cells) in enumerate(rows):
        if len(cells) == 2 and cells[0].strip().isdecimal():
            yield line, int(cells[0]), cells[1].strip().strip('"')
        elif place or cells[0].strip().isdecimal():
            faults.append(f"line {line}: entry {place + 1} {','.join(cells).strip()!r} is not a number and a name")


def _items(text: str, faults: list[str]) -> Iterator[tuple[int, int, str]]:
    """Line, number and name of each block `item` or `label` of a pbtxt."""
    blocks = list[tuple[str, int, dict[str, str]]]()  # those that are open: name, line, fields
    before, line, seen, count = ("", ""), 1, 0, 0
    for found in TOKEN.finditer(text):
        token = found[0]
        line, seen = line + text.count("\n", seen, found.start()), found.start()
        if token.startswith("#"):
            continue
        if token in "{<":
            blocks.append((before[1] if before[1] != ":" else before[0], line, {}))
        elif token in "}>" and blocks:
            name, start, fields = blocks.pop()
            if name in ("item", "label"):
                count += 1
                number = fields.get("id") or fields.get("label_id", "")
                action = fields.get("name") or fields.get("display_name", "")
                if number.isdecimal() and action:
                    yield start, int(number), action
                else:
                    faults.append(f"line {start}: {name} {count} has no id or no name")
        elif token in ("}", ">", '"', "'"):
            faults.append(f"line {line}: {token} has no other")
        elif before[1] == ":" and blocks:
            value = re.sub(r"\\(.)", r"\1", token[1:-1]) if token[0] in "\"'" else token
            blocks[-1][2].setdefault(before[0], value)
        before = (before[1], token)
    faults += [f"line {start}: {name or 'a block'} is not closed" for name, start, _ in blocks]


def _numbers(file: Path, names: list[str], optional: str = "", unread: str = "") -> tuple[pd.DataFrame, Faults]:
    """A file's rows as numbers, and which are malformed: their numbers are 0, those left out of an `optional` column -1."""
    cells, faults = _cells(file, names, optional)
    faults.add((cells.video == "").to_numpy(), lambda row: "the video's name is empty")
    table = {"video": cells.video}
    for name in names[1:]:
        column = cells[name]
        if name == unread:
            continue
        left_out = ((column == "") & (name == optional)).to_numpy()
        if name in WHOLE:
            values, good = whole_numbers(column)
        else:
            values = pd.to_numeric(column, errors="coerce").to_numpy(float)
            good = np.isfinite(values)
        kind = "whole number" if name in WHOLE else "number"

        def tell(row: int, name: str = name, kind: str = kind) -> str:
            return f"{name} {cells[name][row]!r} is no {kind}"

        faults.add(~(good | left_out), tell)
        table[name] = np.where(good, values, np.where(left_out, -1, 0)).astype(values.dtype)
    rows = keyed(pd.DataFrame(table))
    rows.attrs["lines"] = faults.lines.tolist()  # by which later checks name a row
    return rows, faults


def _cells(file: Path, names: list[str], optional: str = "") -> tuple[pd.DataFrame, Faults]:
    """A csv's cells as text, blank if a line is short, and lines of too few or too many. Blank lines at the end and lines that
    start with `#` are no rows."""
    text = _text(file).rstrip()
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if text and not line.startswith("#")]
    rows = [[cell.strip() for cell in line.split(",")] for _, line in lines]
    counts = np.array([len(row) for row in rows], int)
    faults = Faults(np.array([number for number, _ in lines], int))
    right = (counts == len(names)) | (counts == len(names) - 1) & bool(optional)
    faults.add(~right, lambda row: f"{counts[row]} columns; {len(names)} are expected: {', '.join(names)}")
    return pd.DataFrame([(row + [""] * len(names))[: len(names)] for row in rows], columns=names, dtype=str), faults


def _text(file: Path) -> str:
    """A file's text, without the byte-order mark that spreadsheets put before it."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _written(timestamp: float) -> str:
    """Whole seconds as AVA has them, parts of a second as far as they count."""
    return f"{timestamp:.{DIGITS}f}".rstrip("0").rstrip(".")


def _outside(table: pd.DataFrame, slack: float = 0.0) -> np.ndarray:
    corners = table[CORNERS].to_numpy()
    return ((corners < -slack) | (corners > 1 + slack)).any(1)


def _inverted(table: pd.DataFrame) -> np.ndarray:
    return ((table.x2 <= table.x1) | (table.y2 <= table.y1)).to_numpy()


def _corners(table: pd.DataFrame, row: int) -> str:
    return ", ".join(f"{name} {table[name][row]:g}" for name in CORNERS)
