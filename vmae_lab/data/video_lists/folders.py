"""The videos that a folder or a glob lists, and the files and links that it skips."""

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
from vmae_lab.data.video_lists.formats import NOT_TEXT, Cells, Faults, ListError, known_path, place_of, texts
from vmae_lab.utils.atomic_io import utf8_name
from vmae_lab.utils.errors import SHOWN, first_of

VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".f4v", ".ismv", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv",
        ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".ogv", ".ogg", ".gif",
    )
)  # fmt: skip


class Listing(NamedTuple):
    """The sorted `paths` of videos below `base`, and what was skipped: linked folders and broken links (`links`), other files
    by suffix (`others`), and folders directly in `base` without a video (`empty`)."""

    base: Path
    paths: list[str]
    others: Counter[str]
    followed: bool = False  # whether linked folders were listed
    links: Sequence[str] = ()
    empty: Sequence[str] = ()

    def skipped(self, labelled: bool) -> list[str]:
        """Return messages about skipped links and, in a labelled list, empty folders."""
        found = []
        if self.links:
            why = (
                "they lead nowhere, or to a folder that is listed already"
                if self.followed
                else "set data.lists.decoding.follow_links (--follow-links of the data commands) to list them"
            )
            found.append(f"{len(self.links)} link{'s' * (len(self.links) > 1)} skipped: {first_of(self.links)}; {why}")
        if labelled and self.empty:
            what = f"{len(self.empty)} folder{'s' * (len(self.empty) > 1)}"
            found.append(f"{what} without a video, which become no class: {first_of(self.empty)}")
        return found

    @property
    def other_files(self) -> str:
        """The number of files without a video's suffix, with the most frequent suffixes; empty if there are none."""
        kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in self.others.most_common(SHOWN))
        total = self.others.total()
        return f"{total} file{'s' * (total > 1)} without a video's suffix ({kinds})" if total else ""


def listed_files(location: str | Path, root: Path, follow_links: bool = False) -> Listing | None:
    """List a folder or a glob. Return None if `location` is neither.

    Hidden files and folders are skipped. Linked folders are listed only with `follow_links`, and then each real folder once, so
    that loops of links end. A glob also follows a link that one of its levels (not `**`) matches. Raises ListError for an
    invalid pattern, OSError for a folder that cannot be read.
    """
    place = place_of(location, root)
    if place.is_dir():
        return _walk(place, follow_links, lambda path: os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES)
    parts = Path(known_path(location)).expanduser().parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    if first is None:
        return None
    base, pattern = place_of(Path(*parts[:first]), root), parts[first:]
    if "**" in pattern:
        if not base.is_dir():
            return Listing(base, [], Counter())
        return _walk(base, follow_links, lambda path: _matches(path.split("/"), pattern))
    try:
        found = [path.relative_to(base).as_posix() for path in base.glob("/".join(pattern)) if path.is_file()]
    except ValueError as error:
        raise ListError(f"{place} is no pattern of paths: {error}") from error
    return Listing(base, sorted(path for path in found if not re.search(r"(^|/)\.", path)), Counter())


def _walk(base: Path, follow_links: bool, is_listed: Callable[[str], bool]) -> Listing:
    """List all files below a folder. Linked folders come after all others, so that a video keeps its real path."""

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


def cells_of_files(place: Path, root: Path, listing: Listing, labelled: bool) -> Cells:
    """Return the cells of a folder or glob. If it is outside the root, paths start at it. Labels are names of folders.

    Raises ListError.
    """
    is_folder, paths, base = place.is_dir(), listing.paths, listing.base
    if not paths:
        what = f"no video files ({' '.join(sorted(VIDEO_SUFFIXES))}) below" if is_folder else "no files match"
        rest = [*listing.skipped(labelled), *([f"skipped: {listing.other_files}"] if listing.others else [])]
        raise ListError("; ".join([f"{what} {place}", *rest]))
    loose = [path for path in paths if "/" not in path]
    if labelled and is_folder and loose:
        raise ListError(
            f"{len(loose)} files are directly in {place}: {first_of(loose)}; a labelled folder has one folder per class"
        )
    prefix = ""
    if not base.is_relative_to(root):
        root = base
    elif base != root:
        prefix = base.relative_to(root).as_posix() + "/"
    table = pd.DataFrame({"line": np.zeros(len(paths), np.int64), "path": texts(prefix + path for path in paths)})
    if labelled:
        labels = (path.split("/")[0] if is_folder else Path(base, path).parent.name for path in paths)
        table["label"] = texts(map(utf8_name, labels))
    return Cells(str(place), root, table, Faults(table["line"].to_numpy()), named=True)


def is_video(file: Path) -> bool:
    """Return whether a file is a video by its suffix or its first bytes, and so no list."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return True
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    try:
        return bool(set(head) & set(NOT_TEXT)) and bool(container_of(head))
    except ValueError:
        return False


def named_videos(folder: Path) -> Mapping[str, list[os.DirEntry]]:
    """Return the files (without their video suffix) and folders in a folder that may be the video of a name."""
    found = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found[entry.name].append(entry)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            found[Path(entry.name).stem].append(entry)
    return found
