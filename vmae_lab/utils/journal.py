"""A journal of finished items: a file of JSON lines, to which a row is appended as soon as an item is finished."""

import json
import os
from pathlib import Path
from typing import Any

from vmae_lab.utils.atomic_io import storing_in


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows by key; none if there is no file. Incomplete lines of a killed process are skipped."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # an incomplete or empty line
            continue
        rows[row.pop("key")] = row
    return rows


def append_to_journal(path: Path, key: str, row: dict[str, Any]) -> None:
    """Append a row. Raises StorageError."""
    line = json.dumps({"key": key, **row}) + "\n"
    with storing_in(path.parent), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a killed process left an incomplete line
                line = "\n" + line
        file.write(line.encode())
