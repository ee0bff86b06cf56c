"""The classes of a list's labels, which are numbers or names.

1. In a table with a column `class_index`, as our commands write, `label` is a name and `class_index` its number. Names of
   folders are names, too.
2. Otherwise labels are numbers if at least half of them are written as numbers; then all must be whole (2.0 is whole).
   Otherwise all are names, numbered in sorted order.
3. Validation and test lists have the classes of the train list: names are looked up among its names, numbers index them.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.formats import WHOLE_OR_POINT, Cells, ListError, whole_numbers
from vmae_lab.utils.errors import first_of

MOST_CLASSES = 1_000_000  # a larger label is a mistake, and would need a classifier that no memory holds
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
AS_NAMES = "for names that look like numbers, add a column class_index with the number of each name"
Labels = tuple[np.ndarray, tuple[str, ...]]  # int64 (n,), and the names of all classes


def read_labels(cells: Cells, classes: Sequence[str] | int | None) -> Labels:
    """Return the labels, int64 `(n,)`, and the names of all classes: `classes` if it has names, else those of the list.

    Adds bad lines to the faults of `cells`. Raises ListError for other errors.
    """
    if "label" not in cells.table:
        columns = ", ".join(cells.table.attrs["columns"])
        raise ListError(f"{cells.place} has no column 'label'; its columns are {columns}")
    words = _Words(cells)
    given = () if classes is None or isinstance(classes, int) else tuple(map(_normalized, classes))
    count = classes if isinstance(classes, int) else 0
    if "class_index" in cells.table:
        return _indexed(words, cells.table["class_index"], _lost_classes(cells), given, count)
    if cells.named or _are_names(words, given):
        return _by_name(words, given, count)
    return _by_number(words, given, count)


class _Words:
    """The different labels of one list: row i has `words[codes[i]]`. `numbers` are their values if they are `whole` numbers."""

    def __init__(self, cells: Cells):
        self.place, self.faults = cells.place, cells.faults
        self.codes, found = pd.factorize(cells.table["label"].to_numpy(object))
        exact = cells.named or "class_index" in cells.table
        self.words = [_normalized(str(word) if exact else str(word).strip()) for word in found]
        self.numbers, self.whole = whole_numbers(pd.Series(self.words, dtype=object), points=True)
        invalid = sorted(word for word in self.words if re.search(r"[\ud800-\udfff]", word))
        if invalid:
            raise ListError(f"{self.place}: class names are not UTF-8: {first_of(invalid)}; rename their folders")
        self.faults.add(self.rows(word == "" for word in self.words), lambda row: "the label is empty")

    def rows(self, truths: Iterable[object]) -> np.ndarray:
        """Expand a truth value per word to rows: bool `(n,)`."""
        return np.array([bool(truth) for truth in truths], bool)[self.codes]

    def of(self, row: int) -> str:
        return self.words[self.codes[row]]


def _are_names(words: _Words, given: tuple[str, ...]) -> bool:
    """Return whether most labels are not written as numbers, or the given classes are named by numbers ("2019")."""
    named = given and given != numbered(len(given))
    if named and (all(map(WHOLE_OR_POINT.fullmatch, given)) or not set(words.words).isdisjoint(given)):
        return True
    numbers = words.rows(map(NUMBER.fullmatch, words.words))[~words.faults.bad]
    return bool(numbers.sum() < len(numbers) / 2)


def _by_number(words: _Words, given: tuple[str, ...], count: int) -> Labels:
    faults, numbers = words.faults, words.numbers[words.codes]
    faults.add(words.rows(~words.whole), lambda row: f"label {words.of(row)!r} is not a whole number; {AS_NAMES}")
    first = dict[int, str]()
    for word, number, whole in zip(words.words, words.numbers.tolist(), words.whole, strict=True):
        if whole:
            first.setdefault(number, word)
    differs = (_digits(word) != _digits(first.get(n, word)) for word, n in zip(words.words, words.numbers, strict=True))
    faults.add(
        words.rows(differs), lambda row: f"label {words.of(row)!r} is {first[numbers[row]]!r} in other lines; {AS_NAMES}"
    )
    limit = len(given) or count or MOST_CLASSES
    hint = "; labels count from 0" if numbers[~faults.bad].min(initial=limit) == 1 else ""
    faults.add((numbers < 0) | (numbers >= limit), lambda row: f"label {words.of(row)} is outside 0..{limit - 1}{hint}")
    used = numbers[~faults.bad]
    if limit == MOST_CLASSES and used.min(initial=limit) == 1 < used.max(initial=0):
        line = faults.lines[np.flatnonzero(numbers == 1)[0]]
        raise ListError(
            f"{words.place}: labels count from 1 (line {line} has the first 1), not from 0. Subtract 1 from each; if class 0 "
            f"has no video in this list, set data.lists.classes; {AS_NAMES}"
        )
    return numbers, given or numbered(count or int(used.max(initial=-1)) + 1)


def _by_name(words: _Words, given: tuple[str, ...], count: int) -> Labels:
    names = given or tuple(sorted({words.words[code] for code in np.unique(words.codes[~words.faults.bad])}))
    if count and len(names) != count:
        raise ListError(f"{words.place} names {len(names)} classes, but classes is {count}")
    label_of = {name: label for label, name in enumerate(names)}
    values = {int(value[1]): label for label, value in enumerate(map(WHOLE_OR_POINT.fullmatch, given)) if value}
    if given and len(values) == len(given):  # classes named by numbers: other programs write 007 as 7, 2019 as 2019.0
        pairs = zip(words.words, words.numbers.tolist(), words.whole, strict=True)
        label_of = {word: values[number] for word, number, whole in pairs if whole and number in values} | label_of
    labels = np.array([label_of.get(word, -1) for word in words.words], np.int64)[words.codes]

    def unknown(row: int) -> str:
        close = get_close_matches(words.of(row), names, 1, cutoff=0.6)
        return f"there is no class {words.of(row)!r}" + (f" (did you mean {close[0]!r}?)" if close else "")

    words.faults.add(labels < 0, unknown)
    return labels, names


def _indexed(words: _Words, column: pd.Series, lost: dict[int, str], given: tuple[str, ...], count: int) -> Labels:
    """Number names by `class_index`. Given classes are looked up by name, unless the names only repeat the numbers."""
    faults, codes = words.faults, words.codes
    index, whole = whole_numbers(column, points=True)
    limit = count or MOST_CLASSES
    faults.add(~whole, lambda row: f"class_index {column[row]!r} is not a whole number")
    faults.add((index < 0) | (index >= limit), lambda row: f"class_index {index[row]} is outside 0..{limit - 1}")
    pairs = pd.DataFrame({"code": codes, "index": index})
    number_of, name_of = (pairs.groupby(key)[other].transform("first") for key, other in (("code", "index"), ("index", "code")))
    faults.add(
        (number_of != index).to_numpy(),
        lambda row: f"label {words.of(row)!r} has class_index {index[row]} here and {number_of[row]} in other lines",
    )
    faults.add(
        (name_of != codes).to_numpy(),
        lambda row: f"class_index {index[row]} is {words.of(row)!r} here and {words.words[name_of[row]]!r} in other lines",
    )
    pairs = pairs[~faults.bad].drop_duplicates()
    names = lost | {number: words.words[code] for code, number in pairs.itertuples(index=False)}
    plain = all(name == str(number) for number, name in names.items())
    if given:
        return _by_number(words, given, 0) if plain and not _are_names(words, given) else _by_name(words, given, 0)
    unnamed = "{}" if plain else "class {}"  # numbers that no line of an edited list has
    return index, tuple(names.get(i, unnamed.format(i)) for i in range(count or max(names, default=-1) + 1))


def _lost_classes(cells: Cells) -> dict[int, str]:
    """Return number -> name of the classes without a video that a list names. Raises ListError."""
    filled = [cell for cell in cells.table.get("lost_classes", ()) if cell]
    try:
        lost = {int(number): str(name) for number, name in json.loads(filled[0]).items()} if filled else {}
    except (ValueError, AttributeError) as error:
        raise ListError(f"{cells.place}: the column lost_classes has no JSON object of numbers and names: {error}") from error
    return {number: name for number, name in lost.items() if 0 <= number < MOST_CLASSES}


def numbered(count: int) -> tuple[str, ...]:
    """Return names for classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def _normalized(name: str) -> str:
    """Return a class's name in NFC: macOS writes é as two characters, most other systems as one."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _digits(word: str) -> str:
    """Return a whole number's digits. 1 and 1.0 have the same digits, 01 has others."""
    return word.split(".")[0].lstrip("+")
