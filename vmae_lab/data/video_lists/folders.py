"""Lists of the videos in a folder or glob, and of the files and links that are skipped."""

import heapq
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from vmae_lab.data.decoding.container import HEAD, container_of
from vmae_lab.data.video_lists.formats import NOT_TEXT, Cells, Faults, ListError, known_path, list_path, texts
from vmae_lab.utils.atomic_io import utf8_name
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import SHOWN, first_of

VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".f4v", ".ismv", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv",
        ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".ogv", ".ogg", ".gif",
    )
)  # fmt: skip


class Listing(NamedTuple):
    """The sorted `paths` of videos below `base`, and what was skipped.

    `others`: other files, counted by suffix. `links`: linked folders and broken links. `empty`: folders directly in `base`
    without a video.
    """

    base: Path
    paths: list[str]
    others: Counter[str]
    followed: bool = False  # whether linked folders were listed
    links: Sequence[str] = ()
    empty: Sequence[str] = ()

    def skipped(self, labelled: bool) -> list[str]:
        """Return messages about skipped links and, in a labeled list, empty folders."""
        found = []
        if self.links:
            why = (
                "they are broken, or point to a folder that is listed already"
                if self.followed
                else "set data.lists.decoding.follow_links (--follow-links of the data commands) to list them"
            )
            found.append(f"{counted(len(self.links), 'link')} skipped: {first_of(self.links)}; {why}")
        if labelled and self.empty:
            what = counted(len(self.empty), "folder")
            found.append(f"{what} without a video, not used as classes: {first_of(self.empty)}")
        return found

    @property
    def other_files(self) -> str:
        """Text: the number of files without a video suffix, and their most frequent suffixes. Empty if there are none."""
        kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in self.others.most_common(SHOWN))
        total = self.others.total()
        return f"{counted(total, 'file')} without a video suffix ({kinds})" if total else ""


def listed_files(location: str | Path, root: Path, follow_links: bool = False) -> Listing | None:
    """List a folder or a glob. Return None if `location` is neither.

    Hidden files and folders are skipped. With `follow_links`, linked folders are listed, too, but each real folder only once,
    so that loops of links end. A glob also follows links that match one of its parts (except `**`). Raises ListError for an
    invalid pattern, OSError for an unreadable folder.
    """
    path = list_path(location, root)
    if path.is_dir():
        return _walk(path, follow_links, lambda path: os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES)
    parts = Path(known_path(location)).expanduser().parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    if first is None:
        return None
    base, pattern = list_path(Path(*parts[:first]), root), parts[first:]
    if "**" in pattern:
        if not base.is_dir():
            return Listing(base, [], Counter())
        return _walk(base, follow_links, lambda path: _matches(path.split("/"), pattern))
    try:
        found = [path.relative_to(base).as_posix() for path in base.glob("/".join(pattern)) if path.is_file()]
    except ValueError as error:
        raise ListError(f"{path} is not a valid pattern of paths: {error}") from error
    return Listing(base, sorted(path for path in found if not re.search(r"(^|/)\.", path)), Counter())


def _walk(base: Path, follow_links: bool, is_listed: Callable[[str], bool]) -> Listing:
    """List the files below a folder. Linked folders come last, so that a video is listed under its real path."""

    def fail(error: OSError) -> None:
        raise error

    paths, links, others, top = list[str](), list[str](), Counter[str](), set[str]()
    starts, seen = [""], set[tuple[int, int]]()
    while starts:
        for folder, folders, files in os.walk(os.path.join(base, heapq.heappop(starts)), onerror=fail):
            inside = os.path.relpath(folder, base)
            prefix = "" if inside == "." else f"{inside}/"
            if follow_links:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    links.append(inside)
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
            folders[:] = [name for name in folders if not name.startswith(".")]
            if not prefix:
                top.update(folders)
            linked = [prefix + name for name in folders if os.path.islink(os.path.join(folder, name))]  # os.walk skips them
            if follow_links:
                for path in linked:
                    heapq.heappush(starts, path)
            else:
                links += linked
            for path in (prefix + name for name in files if not name.startswith(".")):
                if is_listed(path):
                    paths.append(path)
                elif os.path.exists(os.path.join(base, path)):
                    others[os.path.splitext(path)[1].lower()] += 1
                else:
                    links.append(path)
    empty = top - {path.split("/")[0] for path in paths} - set(links)
    return Listing(base, sorted(paths), others, follow_links, sorted(links), sorted(empty))


def _matches(names: list[str], pattern: tuple[str, ...]) -> bool:
    """Return whether the parts of a path match a pattern. `**` matches any number of folders."""
    if not pattern or not names:
        return not pattern and not names
    if pattern[0] == "**":
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names)))
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def cells_of_files(path: Path, root: Path, listing: Listing, labelled: bool) -> Cells:
    """Return the cells of a folder or glob. Labels are folder names.

    Paths are relative to the root, or to the folder or glob if it is outside the root. Raises ListError.
    """
    is_folder, paths, base = path.is_dir(), listing.paths, listing.base
    if not paths:
        what = f"no video files ({' '.join(sorted(VIDEO_SUFFIXES))}) below" if is_folder else "no files match"
        rest = [*listing.skipped(labelled), *([f"skipped: {listing.other_files}"] if listing.others else [])]
        raise ListError("; ".join([f"{what} {path}", *rest]))
    loose = [path for path in paths if "/" not in path]
    if labelled and is_folder and loose:
        raise ListError(f"{path} has {counted(len(loose), 'file')} that must be in a folder of a class: {first_of(loose)}")
    prefix = ""
    if not base.is_relative_to(root):
        root = base
    elif base != root:
        prefix = base.relative_to(root).as_posix() + "/"
    table = pd.DataFrame({"line": np.zeros(len(paths), np.int64), "path": texts(prefix + path for path in paths)})
    if labelled:
        labels = (path.split("/")[0] if is_folder else Path(base, path).parent.name for path in paths)
        table["label"] = texts(map(utf8_name, labels))
    return Cells(str(path), root, table, Faults(table["line"].to_numpy()), named=True)


def is_video(file: Path) -> bool:
    """Return whether a file is a video, not a list, by its suffix or its first bytes."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return True
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    try:
        return bool(set(head) & set(NOT_TEXT)) and bool(container_of(head))
    except ValueError:
        return False


def named_videos(folder: Path) -> Mapping[str, list[os.DirEntry]]:
    """Return the candidates for named videos in a folder: name without suffix -> video files and folders."""
    found = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found[entry.name].append(entry)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            found[Path(entry.name).stem].append(entry)
    return found
