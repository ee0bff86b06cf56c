"""Labels: whether a list's labels are numbers or names, and which classes they stand for.

The rule, as docs/data.md states it:
1. In a table with a column `class_index`, as our commands write, `label` is always a name and `class_index` its number. Names
   of folders are names, too.
2. Otherwise labels are numbers if at least half of them are written as numbers; then all must be whole (2.0 is whole).
   Otherwise all are names, numbered in sorted order.
3. Validation and test lists have the classes of the train list: names are looked up among its names, numbers count them.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.formats import WHOLE_OR_POINT, Cells, ListError, whole_numbers

MOST_CLASSES = 1_000_000  # a larger label is a slip, and would make a head that no memory holds
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
AS_NAMES = "for names that look like numbers, add a column class_index with the number of each name"
Labels = tuple[np.ndarray, tuple[str, ...]]  # int64 (n,), and the names of all classes


def read_labels(cells: Cells, classes: Sequence[str] | int | None) -> Labels:
    """Checked labels, int64 `(n,)`, and the names of all classes: of `classes` if it gives names, else as the list has them.

    Raises ListError for what is wrong with the list as a whole; bad lines are added to the faults of `cells`.
    """
    if "label" not in cells.table:
        columns = ", ".join(cells.table.attrs["columns"])
        raise ListError(f"{cells.place} has no column 'label'; its columns are {columns}")
    found = _Found(cells)
    given = () if classes is None or isinstance(classes, int) else tuple(map(_composed, classes))
    count = classes if isinstance(classes, int) else 0
    if "class_index" in cells.table:
        return _indexed(found, cells.table["class_index"], _lost(cells), given, count)
    if cells.named or _are_names(found, given):
        return _by_name(found, given, count)
    return _by_number(found, given, count)


class _Found:
    """The labels of one list: row i has `words[codes[i]]`; few words are different, so each is looked at once.

    `numbers` are those of the words that are `whole` numbers.
    """

    def __init__(self, cells: Cells):
        self.place, self.faults = cells.place, cells.faults
        self.codes, found = pd.factorize(cells.table["label"].to_numpy(object))
        exact = cells.named or "class_index" in cells.table
        self.words = [_composed(str(word) if exact else str(word).strip()) for word in found]
        self.numbers, self.whole = whole_numbers(pd.Series(self.words, dtype=object), points=True)
        strange = sorted(word for word in self.words if re.search(r"[\ud800-\udfff]", word))
        if strange:
            raise ListError(f"{self.place}: class names are not UTF-8: {', '.join(strange[:10])}; rename their folders")
        self.faults.add(self.rows(word == "" for word in self.words), lambda row: "the label is empty")

    def rows(self, truths: Iterable[object]) -> np.ndarray:
        """Of a truth per word, that of each row: bool `(n,)`."""
        return np.array([bool(truth) for truth in truths], bool)[self.codes]

    def of(self, row: int) -> str:
        return self.words[self.codes[row]]


def _are_names(found: _Found, given: tuple[str, ...]) -> bool:
    """Whether labels are names: most are not written as numbers, or the given classes are named by numbers ("2019")."""
    named = given and given != numbered(len(given))
    if named and (all(map(WHOLE_OR_POINT.fullmatch, given)) or not set(found.words).isdisjoint(given)):
        return True
    numbers = found.rows(map(NUMBER.fullmatch, found.words))[~found.faults.bad]
    return bool(numbers.sum() < len(numbers) / 2)


def _by_number(found: _Found, given: tuple[str, ...], count: int) -> Labels:
    faults, numbers = found.faults, found.numbers[found.codes]
    faults.add(found.rows(~found.whole), lambda row: f"label {found.of(row)!r} is not a whole number; {AS_NAMES}")
    first = dict[int, str]()
    for word, number in zip(np.array(found.words, object)[found.whole], found.numbers[found.whole].tolist(), strict=True):
        first.setdefault(number, word)
    faults.add(
        found.rows(_digits(word) != _digits(first.get(n, word)) for word, n in zip(found.words, found.numbers, strict=True)),
        lambda row: f"label {found.of(row)!r} is {first[numbers[row]]!r} in other lines; {AS_NAMES}",
    )
    limit = len(given) or count or MOST_CLASSES
    hint = "; labels count from 0" if numbers[~faults.bad].min(initial=limit) == 1 else ""
    faults.add((numbers < 0) | (numbers >= limit), lambda row: f"label {found.of(row)} is outside 0..{limit - 1}{hint}")
    used = numbers[~faults.bad]
    if limit == MOST_CLASSES and used.min(initial=limit) == 1 < used.max(initial=0):
        line = faults.lines[np.flatnonzero(numbers == 1)[0]]
        raise ListError(
            f"{found.place}: labels count from 1 (line {line} has the first 1), not from 0. Subtract 1 from each; if class 0 "
            f"has no video in this list, set data.lists.classes; {AS_NAMES}"
        )
    return numbers, given or numbered(count or int(used.max(initial=-1)) + 1)


def _by_name(found: _Found, given: tuple[str, ...], count: int) -> Labels:
    names = given or tuple(sorted({found.words[code] for code in np.unique(found.codes[~found.faults.bad])}))
    if count and len(names) != count:
        raise ListError(f"{found.place} names {len(names)} classes, where classes says {count}")
    places = {name: place for place, name in enumerate(names)}
    values = {int(value[1]): place for place, value in enumerate(map(WHOLE_OR_POINT.fullmatch, given)) if value}
    if given and len(values) == len(given):  # classes named by numbers: 007 is 7 to most programs, 2019 may be 2019.0
        words = zip(found.words, found.numbers.tolist(), found.whole, strict=True)
        places = {word: values[number] for word, number, whole in words if whole and number in values} | places
    labels = np.array([places.get(word, -1) for word in found.words], np.int64)[found.codes]

    def unknown(row: int) -> str:
        close = get_close_matches(found.of(row), names, 1, cutoff=0.6)
        return f"there is no class {found.of(row)!r}" + (f" (did you mean {close[0]!r}?)" if close else "")

    found.faults.add(labels < 0, unknown)
    return labels, names


def _indexed(found: _Found, column: pd.Series, lost: dict[int, str], given: tuple[str, ...], count: int) -> Labels:
    """Names with their numbers; given classes are looked up by name, unless the names only repeat the numbers."""
    faults, codes = found.faults, found.codes
    index, whole = whole_numbers(column, points=True)
    limit = count or MOST_CLASSES
    faults.add(~whole, lambda row: f"class_index {column[row]!r} is not a whole number")
    faults.add((index < 0) | (index >= limit), lambda row: f"class_index {index[row]} is outside 0..{limit - 1}")
    pairs = pd.DataFrame({"code": codes, "index": index})
    number_of, name_of = (pairs.groupby(one)[other].transform("first") for one, other in (("code", "index"), ("index", "code")))
    faults.add(
        (number_of != index).to_numpy(),
        lambda row: f"label {found.of(row)!r} has class_index {index[row]} here and {number_of[row]} in other lines",
    )
    faults.add(
        (name_of != codes).to_numpy(),
        lambda row: f"class_index {index[row]} is {found.of(row)!r} here and {found.words[name_of[row]]!r} in other lines",
    )
    pairs = pairs[~faults.bad].drop_duplicates()
    names = lost | {number: found.words[code] for code, number in pairs.itertuples(index=False)}
    plain = all(name == str(number) for number, name in names.items())
    if given:
        return _by_number(found, given, 0) if plain and not _are_names(found, given) else _by_name(found, given, 0)
    unnamed = "{}" if plain else "class {}"  # of a number that no line of an edited list has
    return index, tuple(names.get(i, unnamed.format(i)) for i in range(count or max(names, default=-1) + 1))


def _lost(cells: Cells) -> dict[int, str]:
    """The classes, by number, that a written list names though none of its videos has them. Raises ListError."""
    cells_with = [cell for cell in cells.table.get("lost_classes", ()) if cell]
    try:
        lost = {int(number): str(name) for number, name in json.loads(cells_with[0]).items()} if cells_with else {}
    except (ValueError, AttributeError) as error:
        raise ListError(f"{cells.place}: the column lost_classes has no JSON object of numbers and names: {error}") from error
    return {number: name for number, name in lost.items() if 0 <= number < MOST_CLASSES}


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(map(str, range(count)))


def _composed(name: str) -> str:
    """A class's name in one form: macOS writes é as two characters, most other systems as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _digits(word: str) -> str:
    """A whole number's digits: 1 and 1.0 are written alike, 01 is not."""
    return word.split(".")[0].lstrip("+")
