"""Kinetics-710: the training and validation videos of Kinetics-400, 600 and 700, merged (VideoMAE V2, section 3).

`models.checkpoints.convert_head` converts a classifier of these classes to one of a single data set.
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
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import SHOWN, first_of

# Classes with several names: the name in an older data set -> the name that is kept.
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
COLUMNS = ("youtube_id", "time_start", "time_end", "split")  # required; test videos may have no label
FIELDS = ["youtube_id", "time_start", "time_end", "source", "label", "split"]
PATH_PATTERN = "{youtube_id}_{time_start:06d}_{time_end:06d}.mp4"
FILES = {"train": "train.csv", "validation": "val.csv"}  # split -> its list; the recipes of params/paper have these names
PRETRAIN = "pretrain.csv"


@dataclass(frozen=True)
class LabeledHybrid:
    """The merged data set.

    `table`: one row per video, training videos first: `youtube_id`, `time_start`, `time_end` (seconds, int64), `source`,
    `label` (int64, index in `classes`), `split` (train or validation). `conversions`: source -> row of the merged head for each
    of its own classes. `summary`: counts. Rows left out and videos kept add up to the rows read.
    """

    table: pd.DataFrame
    classes: tuple[str, ...]
    conversions: dict[str, list[int]]
    summary: dict[str, int]


def merge_kinetics(annotations: Mapping[str, Sequence[Path]], classes: Sequence[str] | None = None) -> LabeledHybrid:
    """Merge the annotation files (CSV) of several data sets. Their names contain the number of classes, like `k400`.

    Each YouTube id is kept once, in training if it occurs there, so that no training video is used for validation. Label and
    times are from the newest data set (the one with most classes), and there from the first row. `classes`: the order of the
    merged head; sorted by default. Raises ListError with the bad lines of a file or the unknown names.
    """
    newest = sorted(annotations, key=_number, reverse=True)
    if len({_number(source) for source in newest}) < len(newest):
        raise ValueError(f"the names of the data sets {', '.join(annotations)} must have different numbers of classes")
    rows = pd.concat(
        [_read_file(Path(file)).assign(source=source) for source in newest for file in annotations[source]], ignore_index=True
    )
    kept = rows[rows["split"] != "test"]
    own = {source: _own_classes(kept["label"][kept["source"] == source]) for source in annotations}
    classes = tuple(classes) if classes is not None else _merged_classes([own[source] for source in newest])
    conversions = {source: _rows_of(own[source], classes, source) for source in annotations}
    row_of = {(source, _key(name)): row for source in own for name, row in zip(own[source], conversions[source], strict=True)}
    keys = kept["label"].map({label: _key(label) for label in kept["label"].unique()})
    kept = kept.assign(label=np.array([row_of[key] for key in zip(kept["source"], keys, strict=True)], np.int64))
    table, counts = _without_repeats(kept)
    names = {key: row for (_, key), row in row_of.items()}
    summary = {"rows read": len(rows), "test rows left out": len(rows) - len(kept)} | counts
    summary |= {"classes": len(classes), "class names merged into another": len(names) - len(set(names.values()))}
    return LabeledHybrid(table[FIELDS], classes, conversions, summary)


def write_hybrid(hybrid: LabeledHybrid, folder: Path, path_pattern: str = PATH_PATTERN) -> None:
    """Write the lists train.csv and val.csv, and pretrain.csv (the training videos without labels), for `read_list`.

    Also writes classes.txt, summary.json and a label_710to400.json per source. `path_pattern` may contain columns of the table.
    Raises ListError for other names, or if two videos get the same path.
    """
    try:
        paths = [path_pattern.format(**row._asdict()) for row in hybrid.table[FIELDS].itertuples(index=False)]
    except (KeyError, IndexError, ValueError) as error:
        raise ListError(f"path_pattern {path_pattern!r} cannot be filled with {', '.join(FIELDS)}: {error!r}") from error
    named = pd.DataFrame({"path": paths, "label": hybrid.table["label"]})
    if (repeated := named["path"].duplicated()).any():
        raise ListError(f"path_pattern {path_pattern!r} gives several videos the path {named['path'][repeated].iloc[0]!r}")
    make_folder(folder)
    parts = {file: named[hybrid.table["split"] == split] for split, file in FILES.items()}
    parts[PRETRAIN] = parts[FILES["train"]][["path"]]
    for file, part in parts.items():
        write_text(folder / file, part.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in hybrid.classes))
    for source, rows in hybrid.conversions.items():
        write_json(folder / f"label_{len(hybrid.classes)}to{_number(source)}.json", rows)
    write_json(folder / "summary.json", hybrid.summary)


def _number(source: str) -> int:
    found = re.search(r"\d+", source)
    if not found:
        raise ValueError(f"the name of the data set {source!r} has no number of classes, like k400")
    return int(found[0])


def _key(name: str) -> str:
    """Return a normalized class name. All spellings of a class have the same one.

    Data sets differ in capitals ("passing american football"). Tools that name folders after classes replace spaces by
    underscores. Edited lists have curly apostrophes ("massaging person's head") or the quotation marks of csv.
    """
    return re.sub(r"[\s_]+", " ", name.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).strip(" \"'").casefold()


KEPT = {_key(other): kept for other, kept in RENAMINGS.items() if _key(other) != _key(kept)}


def _read_file(file: Path) -> pd.DataFrame:
    """Read the rows of an annotation file: text columns, `split` as in SPLITS, whole seconds. Raises ListError."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False).fillna("")
    except (OSError, ValueError) as error:  # errors of pandas are ValueErrors
        raise ListError(f"cannot read the annotations {file}: {error}") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ListError(f"{file} has no column {', '.join(missing)}; its columns are {', '.join(table)}")
    table = table.reindex(columns=["label", *COLUMNS], fill_value="").apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]  # without blank lines
    faults = Faults(table.index.to_numpy() + 2)
    table = table.reset_index(drop=True)
    split = table["split"].map(SPLITS).fillna("")
    faults.add((split == "").to_numpy(), lambda row: f"split {table['split'][row]!r} is not one of {', '.join(SPLITS)}")
    used = (split != "test").to_numpy()
    faults.add(used & (table["label"] == "").to_numpy(), lambda row: "the label is empty")
    proper = table["youtube_id"].str.fullmatch(r"[A-Za-z0-9_-]+").to_numpy(bool)
    faults.add(used & ~proper, lambda row: f"{table['youtube_id'][row]!r} is not a YouTube id")

    def seconds(name: str) -> np.ndarray:
        values, good = whole_numbers(table[name])
        faults.add(used & ~good, lambda row: f"{name} {table[name][row]!r} is not a whole number of seconds")
        return values

    start, end = seconds("time_start"), seconds("time_end")
    empty = (start < 0) | (end <= start)
    faults.add(used & empty, lambda row: f"{start[row]} to {end[row]} s is not a valid range")
    faults.check(str(file))
    return table.assign(split=split, time_start=start, time_end=end)


def _own_classes(labels: pd.Series) -> list[str]:
    """Return the classes of a data set: its labels, sorted, with one spelling each."""
    return sorted({_key(name): name for name in sorted(labels.unique(), reverse=True)}.values())


def _merged_classes(newest_first: list[list[str]]) -> tuple[str, ...]:
    """Return all classes, sorted, as spelled in the newest data set."""
    spelled: dict[str, str] = {}
    for name in (name for names in newest_first for name in names):
        kept = KEPT.get(_key(name), name)
        spelled.setdefault(_key(kept), kept)
    return tuple(sorted(spelled.values()))


def _rows_of(names: Sequence[str], classes: tuple[str, ...], source: str) -> list[int]:
    """Return the row of the merged head for each class name, or for the name that replaced it. Raises ListError."""
    rows = {_key(name): row for row, name in enumerate(classes)}
    if len(rows) < len(classes):
        raise ListError(f"{len(classes)} classes have only {counted(len(rows), 'distinct name')}")
    found = [rows.get(_key(name), rows.get(_key(KEPT.get(_key(name), name)))) for name in names]
    if unknown := [name for name, row in zip(names, found, strict=True) if row is None]:
        close = {name: get_close_matches(name, classes, 1) for name in unknown[:SHOWN]}
        listed = [name + (f" (did you mean {match[0]!r}?)" if match else "") for name, match in close.items()]
        named = first_of(listed, total=len(unknown))
        raise ListError(f"{source} has {counted(len(unknown), 'class')} not among the {len(classes)} classes: {named}")
    return [row for row in found if row is not None]


def _without_repeats(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return one row per YouTube id (the first, from training if possible), and counts of the rows left out."""
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
