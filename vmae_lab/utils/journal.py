"""Files of JSON lines, and journals of finished items: such a file gets a row as soon as an item is finished."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmae_lab.utils.atomic_io import storing_in


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; none if it does not exist. Incomplete lines of a killed process are skipped."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):  # an incomplete or empty line
            yield json.loads(line)


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a journal by key."""
    return {row.pop("key"): row for row in read_rows(path)}


def append_to_journal(path: Path, key: str, row: dict[str, Any]) -> None:
    """Append a row. Raises StorageError."""
    line = json.dumps({"key": key, **row}) + "\n"
    with storing_in(path.parent), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # a killed process left an incomplete line
                line = "\n" + line
        file.write(line.encode())
