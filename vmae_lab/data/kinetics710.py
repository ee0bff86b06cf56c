"""Kinetics-710: the training and validation videos of Kinetics-400, 600 and 700 as one labelled set (VideoMAE V2, section 3).

A classifier of its classes becomes one of a single data set by picking rows of its head (`models.checkpoints.convert_head`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.data.video_lists.formats import Faults, ListError, whole_numbers
from vmae_lab.utils.atomic_io import make_folder, write_json, write_text

# Classes that are the same under another name: the name in an older data set, and the one that is kept.
RENAMINGS = {
    "balloon blowing": "inflating balloons",
    "changing wheel": "changing wheel (not on bike)",
    "cooking sausages": "cooking sausages (not on barbeque)",
    "drinking": "sipping cup",
    "dying hair": "dyeing hair",
    "garbage collecting": "person collecting garbage",
    "hugging": "hugging (not baby)",
    "making bed": "making the bed",
    "opening bottle": "opening bottle (not wine)",
    "passing american football (not in game)": "passing American football (not in game)",
    "picking fruit": "picking apples",
    "skiing (not slalom or crosscountry)": "skiing mono",
    "sniffing": "smelling feet",
    "throwing ball": "throwing ball (not baseball or American football)",
    "tying tie": "tying necktie",
}
SPLITS = {"train": "train", "validate": "validation", "validation": "validation", "val": "validation", "test": "test"}
COLUMNS = ("youtube_id", "time_start", "time_end", "split")  # and label, which lists of test videos may lack
FIELDS = ["youtube_id", "time_start", "time_end", "source", "label", "split"]
PATH_PATTERN = "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"


@dataclass(frozen=True)
class LabeledHybrid:
    """The merged data set.

    `table`: a video a row, training videos first: `youtube_id`, `time_start`, `time_end` (seconds, int64), `source`, `label`
    (int64, its place in `classes`), `split` (train or validation). `conversions`: for each source the row of the merged head
    that each of its own classes has. `summary`: counts; the rows left out and the videos kept add up to the rows read.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    conversions: dict[str, list[int]]
    summary: dict[str, int]


def merge_kinetics(
    annotations: Mapping[str, Sequence[Path]],
    classes: Sequence[str] | None = None,
    source_classes: Mapping[str, Sequence[str]] | None = None,
) -> LabeledHybrid:
    """Merge the annotation files (CSV) of several data sets, whose names hold their number of classes, like `k400`.

    A YouTube id is kept once, in training before validation, so that no training video is validated on. The newest data set,
    which has most classes, says its label and times; within one the first row does. `classes`: the merged head's order, sorted
    where left out. `source_classes`: the order of a data set's own classes, sorted where left out.
    Raises ListError with the bad lines of a file, or the names that are no class.
    """
    newest = sorted(annotations, key=_number, reverse=True)
    if len({_number(source) for source in newest}) < len(newest):
        raise ValueError(f"the data sets {', '.join(annotations)} are told apart by their numbers of classes")
    rows = pd.concat([_read(source, annotations[source]) for source in newest], ignore_index=True)
    kept = rows[rows["split"] != "test"]
    own = {source: _own_classes(source, kept, source_classes or {}) for source in annotations}
    classes = tuple(classes) if classes is not None else _merged_classes([own[source] for source in newest])
    conversions = {source: _rows_of(own[source], classes, source) for source in annotations}
    kept = kept.assign(label=_labels(kept, own, conversions))
    table, counts = _without_repeats(kept)
    names = {_key(name): row for source in annotations for name, row in zip(own[source], conversions[source], strict=True)}
    summary = {"rows read": len(rows), "test rows left out": len(rows) - len(kept)} | counts
    merged = {"classes": len(classes), "class names merged into another": len(names) - len(set(names.values()))}
    return LabeledHybrid(table[FIELDS], classes, conversions, summary | merged)


def write_hybrid(hybrid: LabeledHybrid, folder: Path, path_pattern: str = PATH_PATTERN) -> None:
    """Write train.csv and validation.csv for `read_list`, classes.txt, summary.json and a label_710to400.json for every source.

    `path_pattern` may hold columns of the hybrid's table. Raises ListError where it holds others or names two videos alike.
    """
    columns = [hybrid.table[name] for name in FIELDS]
    try:
        paths = [path_pattern.format(**dict(zip(FIELDS, row, strict=True))) for row in zip(*columns, strict=True)]
    except (KeyError, IndexError, ValueError) as error:
        raise ListError(f"path_pattern {path_pattern!r} cannot be filled with {', '.join(FIELDS)}: {error!r}") from error
    named = pd.DataFrame({"path": paths, "label": hybrid.table["label"]})
    if named["path"].duplicated().any():
        twice = named["path"][named["path"].duplicated()].iloc[0]
        raise ListError(f"path_pattern {path_pattern!r} names several videos {twice!r}")
    make_folder(folder)
    for split in ("train", "validation"):
        write_text(folder / f"{split}.csv", named[hybrid.table["split"] == split].to_csv(index=False, lineterminator="\n"))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in hybrid.classes))
    for source, rows in hybrid.conversions.items():
        write_json(folder / f"label_{len(hybrid.classes)}to{_number(source)}.json", rows)
    write_json(folder / "summary.json", hybrid.summary)


def _number(source: str) -> int:
    found = re.search(r"\d+", source)
    if not found:
        raise ValueError(f"the data set {source!r} has no number of classes in its name, as k400 has")
    return int(found[0])


def _key(name: str) -> str:
    """What two spellings of a class have in common.

    Data sets differ in capitals ("passing american football"), tools that name folders after classes put underscores for
    spaces, and lists that passed through an editor have curled apostrophes ("massaging person's head") or kept their quotes.
    """
    return re.sub(r"[\s_]+", " ", name.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).strip(" \"'").casefold()


KEPT = {_key(other): kept for other, kept in RENAMINGS.items() if _key(other) != _key(kept)}


def _read(source: str, files: Sequence[Path]) -> pd.DataFrame:
    """The rows of a data set's files, in their order, with `split` in our words and whole seconds."""
    return pd.concat([_read_file(Path(file)) for file in files], ignore_index=True).assign(source=source)


def _read_file(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False).fillna("")
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise ListError(f"cannot read the annotations {file}: {error}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ListError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(table)}")
    if "label" not in table:
        table["label"] = ""
    table = table[["label", *COLUMNS]].apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]  # blank lines
    faults = Faults(table.index.to_numpy() + 2)
    table = table.reset_index(drop=True)
    split = table["split"].map(SPLITS).fillna("")
    faults.add((split == "").to_numpy(), lambda row: f"split {table['split'][row]!r} is none of {', '.join(SPLITS)}")
    used = (split != "test").to_numpy()
    faults.add(used & (table["label"] == "").to_numpy(), lambda row: "the label is empty")
    proper = table["youtube_id"].str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(bool)
    faults.add(used & ~proper, lambda row: f"{table['youtube_id'][row]!r} is no YouTube id")
    times = {}
    for name in ("time_start", "time_end"):
        times[name], good = whole_numbers(table[name])

        def tell(row: int, name: str = name) -> str:
            return f"{name} {table[name][row]!r} is no whole number of seconds"

        faults.add(used & ~good, tell)
    early = (times["time_start"] < 0) | (times["time_end"] <= times["time_start"])
    faults.add(used & early, lambda row: f"from {table['time_start'][row]} to {table['time_end'][row]} seconds is no time")
    faults.check(str(file))
    return table.assign(split=split, **times)


def _own_classes(source: str, rows: pd.DataFrame, given: Mapping[str, Sequence[str]]) -> list[str]:
    """A data set's classes in its own order; its labels, each spelled one way, where that is not given."""
    found = {_key(name): name for name in sorted(rows["label"][rows["source"] == source].unique(), reverse=True)}
    if source not in given:
        return sorted(found.values())
    strange = [name for key, name in found.items() if key not in set(map(_key, given[source]))]
    if strange:
        raise ListError(f"{source} has labels that are not among its classes: {', '.join(sorted(strange)[:10])}")
    return list(given[source])


def _merged_classes(newest_first: list[list[str]]) -> tuple[str, ...]:
    """All classes, sorted, as the newest data set spells them."""
    spelled: dict[str, str] = {}
    for name in (name for names in newest_first for name in names):
        kept = KEPT.get(_key(name), name)
        spelled.setdefault(_key(kept), kept)
    return tuple(sorted(spelled.values()))


def _rows_of(names: Sequence[str], classes: tuple[str, ...], source: str) -> list[int]:
    """The merged head's row of each name: the class of that name, else the one that it was renamed to."""
    rows = {_key(name): row for row, name in enumerate(classes)}
    if len(rows) < len(classes):
        raise ListError(f"{len(classes)} classes have only {len(rows)} different names")
    found = [rows.get(_key(name), rows.get(_key(KEPT.get(_key(name), name)))) for name in names]
    unknown = [name for name, row in zip(names, found, strict=True) if row is None]
    if unknown:
        close = {name: get_close_matches(name, classes, 1) for name in unknown[:10]}
        told = ", ".join(name + (f" (did you mean {match[0]!r}?)" if match else "") for name, match in close.items())
        raise ListError(f"{len(unknown)} classes of {source} are not among the {len(classes)}: {told}")
    return [row for row in found if row is not None]


def _labels(rows: pd.DataFrame, own: Mapping[str, Sequence[str]], conversions: Mapping[str, list[int]]) -> np.ndarray:
    """Each row's label in the merged set, int64 `(n,)`."""
    labels = np.empty(len(rows), np.int64)
    for source, names in own.items():
        row_of = dict(zip(map(_key, names), conversions[source], strict=True))
        here = rows["label"][rows["source"] == source]
        labels[(rows["source"] == source).to_numpy()] = here.map({name: row_of[_key(name)] for name in here.unique()})
    return labels


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Each YouTube id once: its first row, the newest data set's, in training where it has one there; and what was counted."""
    train, validation = (rows[rows["split"] == split] for split in ("train", "validation"))
    once = {"train": train.drop_duplicates("youtube_id"), "validation": validation.drop_duplicates("youtube_id")}
    leaked = once["validation"]["youtube_id"].isin(once["train"]["youtube_id"])
    table = pd.concat([once["train"], once["validation"][~leaked]], ignore_index=True)
    several = [int((part.groupby("youtube_id")["label"].nunique() > 1).sum()) for part in (train, validation)]
    return table, {
        "repeated training rows left out": len(train) - len(once["train"]),
        "training videos with several labels": several[0],
        "repeated validation rows left out": len(validation) - len(once["validation"]),
        "validation videos with several labels": several[1],
        "validation videos left out that are in a training set": int(leaked.sum()),
        "training videos": len(once["train"]),
        "validation videos": int((~leaked).sum()),
    }
