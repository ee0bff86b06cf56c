"""Labels and classes of a list. Labels are numbers or names:

1. In a table with a column `class_index`, which our commands write, `label` is a name and `class_index` its number. Folder
   names are names, too.
2. Otherwise, labels are numbers if at least half of them look like numbers; then all must be whole (2.0 is whole). If not, all
   labels are names, numbered in sorted order.
3. Validation and test lists use the classes of the train list: names are looked up, numbers are indices.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.formats import WHOLE_OR_POINT, Cells, ListError, whole_numbers
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of

MOST_CLASSES = 1_000_000  # a larger label is a mistake: the classifier would not fit into memory
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
AS_NAMES = "if labels are names that look like numbers, add a column class_index with their class numbers"
Labels = tuple[np.ndarray, tuple[str, ...]]  # int64 (n,), and the names of all classes


def read_labels(cells: Cells, classes: Sequence[str] | int | None) -> Labels:
    """Return the labels, int64 `(n,)`, and the names of all classes: `classes` if it has names, else the names in the list.

    Bad lines are added to the faults of `cells`. Raises ListError for other errors.
    """
    if "label" not in cells.table:
        columns = ", ".join(cells.table.attrs["columns"])
        raise ListError(f"{cells.name} has no column 'label'; its columns are {columns}")
    distinct = _DistinctLabels(cells)
    given = () if classes is None or isinstance(classes, int) else tuple(map(_normalized, classes))
    count = classes if isinstance(classes, int) else 0
    if "class_index" in cells.table:
        return _indexed(distinct, cells.table["class_index"], _lost_classes(cells), given, count)
    if cells.named or _are_names(distinct, given):
        return _by_name(distinct, given, count)
    return _by_number(distinct, given, count)


class _DistinctLabels:
    """The distinct labels of a list. Row i has `texts[codes[i]]`. `numbers`: their values if they are `whole` numbers."""

    def __init__(self, cells: Cells):
        self.name, self.faults = cells.name, cells.faults
        self.codes, found = pd.factorize(cells.table["label"].to_numpy(object))
        exact = cells.named or "class_index" in cells.table
        self.texts = [_normalized(str(text) if exact else str(text).strip()) for text in found]
        self.numbers, self.whole = whole_numbers(pd.Series(self.texts, dtype=object), points=True)
        invalid = sorted(text for text in self.texts if re.search(r"[\ud800-\udfff]", text))
        if invalid:
            raise ListError(f"{self.name}: class names are not UTF-8: {first_of(invalid)}; rename their folders")
        self.faults.add(self.rows(text == "" for text in self.texts), lambda row: "the label is empty")

    def rows(self, truths: Iterable[object]) -> np.ndarray:
        """Expand one truth value per distinct label to rows: bool `(n,)`."""
        return np.array([bool(truth) for truth in truths], bool)[self.codes]

    def of(self, row: int) -> str:
        return self.texts[self.codes[row]]


def _are_names(distinct: _DistinctLabels, given: tuple[str, ...]) -> bool:
    """Return whether labels are names: most do not look like numbers, or the given class names are numbers ("2019")."""
    named = given and given != numbered(len(given))
    if named and (all(map(WHOLE_OR_POINT.fullmatch, given)) or not set(distinct.texts).isdisjoint(given)):
        return True
    numbers = distinct.rows(map(NUMBER.fullmatch, distinct.texts))[~distinct.faults.bad]
    return bool(numbers.sum() < len(numbers) / 2)


def _by_number(distinct: _DistinctLabels, given: tuple[str, ...], count: int) -> Labels:
    faults, numbers = distinct.faults, distinct.numbers[distinct.codes]
    faults.add(distinct.rows(~distinct.whole), lambda row: f"label {distinct.of(row)!r} is not a whole number; {AS_NAMES}")
    first = dict[int, str]()
    for text, number, whole in zip(distinct.texts, distinct.numbers.tolist(), distinct.whole, strict=True):
        if whole:
            first.setdefault(number, text)
    differs = (_digits(text) != _digits(first.get(n, text)) for text, n in zip(distinct.texts, distinct.numbers, strict=True))
    faults.add(
        distinct.rows(differs),
        lambda row: f"label {distinct.of(row)!r} is written {first[numbers[row]]!r} in other lines; {AS_NAMES}",
    )
    limit = len(given) or count or MOST_CLASSES
    from_one = numbers[~faults.bad].min(initial=limit) == 1

    def outside(row: int) -> str:
        hint = "; labels start at 0" if numbers[row] < 0 or from_one else ""
        return f"label {distinct.of(row)} is outside 0..{limit - 1}{hint}"

    faults.add((numbers < 0) | (numbers >= limit), outside)
    used = numbers[~faults.bad]
    if limit == MOST_CLASSES and used.min(initial=limit) == 1 < used.max(initial=0):
        line = faults.lines[np.flatnonzero(numbers == 1)[0]]
        raise ListError(
            f"{distinct.name}: labels start at 1 (first in line {line}) instead of 0. Subtract 1 from each label. If class 0 "
            f"exists but has no video in this list, set data.lists.classes; {AS_NAMES}"
        )
    return numbers, given or numbered(count or int(used.max(initial=-1)) + 1)


def _by_name(distinct: _DistinctLabels, given: tuple[str, ...], count: int) -> Labels:
    names = given or tuple(sorted({distinct.texts[code] for code in np.unique(distinct.codes[~distinct.faults.bad])}))
    if count and len(names) != count:
        raise ListError(f"{distinct.name} has {counted(len(names), 'class')}, but data.lists.classes is {count}")
    label_of = {name: label for label, name in enumerate(names)}
    values = {int(value[1]): label for label, value in enumerate(map(WHOLE_OR_POINT.fullmatch, given)) if value}
    if given and len(values) == len(given):  # classes whose names are numbers: other programs write 007 as 7, 2019 as 2019.0
        pairs = zip(distinct.texts, distinct.numbers.tolist(), distinct.whole, strict=True)
        label_of = {text: values[number] for text, number, whole in pairs if whole and number in values} | label_of
    labels = np.array([label_of.get(text, -1) for text in distinct.texts], np.int64)[distinct.codes]

    def unknown(row: int) -> str:
        close = get_close_matches(distinct.of(row), names, 1, cutoff=0.6)
        return f"there is no class {distinct.of(row)!r}" + (f" (did you mean {close[0]!r}?)" if close else "")

    distinct.faults.add(labels < 0, unknown)
    return labels, names


def _indexed(distinct: _DistinctLabels, column: pd.Series, lost: dict[int, str], given: tuple[str, ...], count: int) -> Labels:
    """Return labels by `class_index`. If classes are given, names are looked up, unless names are just the numbers."""
    faults, codes = distinct.faults, distinct.codes
    index, whole = whole_numbers(column, points=True)
    limit = count or MOST_CLASSES
    faults.add(~whole, lambda row: f"class_index {column[row]!r} is not a whole number")
    faults.add((index < 0) | (index >= limit), lambda row: f"class_index {index[row]} is outside 0..{limit - 1}")
    pairs = pd.DataFrame({"code": codes, "index": index})
    number_of, name_of = (pairs.groupby(key)[other].transform("first") for key, other in (("code", "index"), ("index", "code")))
    faults.add(
        (number_of != index).to_numpy(),
        lambda row: f"label {distinct.of(row)!r} has class_index {index[row]} here and {number_of[row]} in other lines",
    )
    faults.add(
        (name_of != codes).to_numpy(),
        lambda row: (
            f"class_index {index[row]} is {distinct.of(row)!r} here and {distinct.texts[name_of[row]]!r} in other lines"
        ),
    )
    pairs = pairs[~faults.bad].drop_duplicates()
    names = lost | {number: distinct.texts[code] for code, number in pairs.itertuples(index=False)}
    plain = all(name == str(number) for number, name in names.items())
    if given:
        return _by_number(distinct, given, 0) if plain and not _are_names(distinct, given) else _by_name(distinct, given, 0)
    unnamed = "{}" if plain else "class {}"  # numbers that are missing in an edited list
    return index, tuple(names.get(i, unnamed.format(i)) for i in range(count or max(names, default=-1) + 1))


def _lost_classes(cells: Cells) -> dict[int, str]:
    """Return the classes without a video from the column `lost_classes`: number -> name. Raises ListError."""
    filled = [cell for cell in cells.table.get("lost_classes", ()) if cell]
    try:
        lost = {int(number): str(name) for number, name in json.loads(filled[0]).items()} if filled else {}
    except (ValueError, AttributeError) as error:
        raise ListError(f"{cells.name}: the column lost_classes is not a JSON object of numbers and names: {error}") from error
    return {number: name for number, name in lost.items() if 0 <= number < MOST_CLASSES}


def numbered(count: int) -> tuple[str, ...]:
    """Return the names of unnamed classes: "0", "1", ..."""
    return tuple(map(str, range(count)))


def _normalized(name: str) -> str:
    """Return a class name in NFC. macOS writes é as two characters, most other systems as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _digits(text: str) -> str:
    """Return the digits of a whole number. 1 and 1.0 have the same digits, 01 has different ones."""
    return text.split(".")[0].lstrip("+")
