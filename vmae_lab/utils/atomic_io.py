"""Atomic writing of files, JSON, and file names that are not UTF-8."""

import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vmae_lab.utils.errors import UserError


class StorageError(UserError, OSError):
    """A folder cannot be written, or the disk is full. The message names the folder and what to do."""


@contextmanager
def storing_in(folder: Path) -> Iterator[None]:
    """Convert write errors in the block (read-only, no permission, full disk) to a StorageError that names `folder`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reasons = {
            errno.EROFS: "it is on a read-only file system",
            errno.EACCES: "there is no permission to write there",
            errno.EPERM: "there is no permission to write there",
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.ENOTDIR: "a part of the path is a file, not a folder",
            errno.EEXIST: "there is a file of that name",
        }
        if error.errno not in reasons:
            raise
        raise StorageError(
            f"cannot write to {folder}: {reasons[error.errno]}. Fix this, or use another folder: set VMAE_LAB_HOME for cached "
            "data, VMAE_LAB_PROJECT for runs/ and reports/"
        ) from error


def make_folder(folder: Path) -> Path:
    """Create a folder, and check that files can be written in it. Raises StorageError."""
    with storing_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. It is renamed to `path` after the block, or removed if the block fails.

    Only one process may write `path` at a time, because temporary files of killed processes are removed. Raises StorageError,
    also if a full disk makes PyTorch or safetensors raise another error.
    """
    if path.is_dir():
        raise StorageError(f"cannot write {path}: there is a folder of that name")
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storing_in(path.parent):
        try:
            try:
                yield temporary
            except (RuntimeError, SafetensorError) as error:
                if shutil.disk_usage(path.parent).free < 1 << 20:
                    raise OSError(errno.ENOSPC, str(error)) from error
                raise
            flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Flush a file to disk. If the disk is full, this may be the first call that raises an error."""
    with open(path, "rb") as written:
        os.fsync(written.fileno())


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(readable(text), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())  # bytes: json detects UTF-8 with or without a byte-order mark, and UTF-16


def fingerprint(value: Any) -> str:
    """Return a hash of plain values: 12 hexadecimal digits, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=6).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# File names


def readable(text: str) -> str:
    """Return text that can be encoded as UTF-8, with `\\xe9` for a byte of a file name that is not UTF-8."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # an unpaired surrogate that does not come from a file name
        return text.encode("utf-8", "backslashreplace").decode()


def local_name(name: str) -> str:
    """Return a UTF-8 name as `open` and `os` need it in this locale, so that the file has the same bytes in every locale."""
    if name.isascii() or sys.getfilesystemencoding() == "utf-8":
        return name
    try:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return name


def utf8_name(name: str) -> str:
    """Return a file name as UTF-8 text: the inverse of `local_name`. Bytes that are not UTF-8 stay surrogates."""
    if name.isascii() or sys.getfilesystemencoding() == "utf-8":
        return name
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def escaped_name(name: str) -> str:
    """Return a UTF-8 name for a table, with `\\xe9` for a byte that is not UTF-8 and `\\\\` for a backslash."""
    return name.replace("\\", r"\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unescaped_name(text: str) -> str:
    """Return the name from its escaped form: the inverse of `escaped_name`."""
    return re.sub(
        rb"\\(\\|x[0-9a-fA-F]{2})",
        lambda match: b"\\" if match[1] == b"\\" else bytes([int(match[1][1:], 16)]),
        text.encode("utf-8", "surrogateescape"),
    ).decode("utf-8", "surrogateescape")
