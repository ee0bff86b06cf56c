"""Lists as our commands write them: `read_list` reads the same videos and classes from them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vmae_lab.utils.atomic_io import escaped_name, readable, utf8_name, write_text


def write_list(file: Path, table: pd.DataFrame, classes: Sequence[str] = ()) -> None:
    """Write videos as csv, whole or not at all: columns `path` and any others; a column `label` of numbers counts `classes`.

    The file has the name of each class in `label` and its number in `class_index`, so that names which look like numbers stay
    names. Classes without a row are in the first cell of `lost_classes`, as JSON of numbers and names. Paths that are not UTF-8
    are escaped: `path_escaped` is 1 then.
    """
    paths = [utf8_name(path) for path in table["path"]]
    odd = [readable(path) != path for path in paths]
    names = [escaped_name(path) if one else path for path, one in zip(paths, odd, strict=True)]
    written = table.assign(path=names, **({"path_escaped": np.array(odd, int)} if any(odd) else {}))
    if "label" in table:
        written = written.assign(label=[classes[label] for label in table["label"]], class_index=table["label"])
        used = set(table["label"])
        lost = {number: name for number, name in enumerate(classes) if number not in used}
        if lost and len(table):
            written["lost_classes"] = [json.dumps(lost), *[""] * (len(table) - 1)]
    text = written.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # csv leaves it without quotation marks, and then it ends a line
        text = written.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(file, text)
