"""The videos that a folder or a glob lists, and what it passes over."""

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

VIDEO_SUFFIXES = frozenset(
    (
        ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".f4v", ".ismv", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf", ".flv",
        ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".ogv", ".ogg", ".gif",
    )
)  # fmt: skip
SHOWN = 10  # names that a message lists


class Listing(NamedTuple):
    """The sorted `paths` of files below `base`, and what was passed over: linked folders and links that lead nowhere
    (`links`), other files by suffix (`others`), and folders directly in `base` without a file that counts (`empty`)."""

    base: Path
    paths: list[str]
    others: Counter[str]
    followed: bool = False  # whether linked folders were listed
    links: Sequence[str] = ()
    empty: Sequence[str] = ()

    def skipped(self, labelled: bool) -> list[str]:
        """What a reader should know of what was passed over: a phrase each."""
        found = []
        if self.links:
            why = (
                "they lead nowhere, or to a folder that is listed already"
                if self.followed
                else "set data.lists.decoding.follow_links (--follow-links of the data commands) to list them"
            )
            found.append(f"{_count(self.links, 'link')} skipped: {_named(self.links)}; {why}")
        if labelled and self.empty:
            found.append(f"{_count(self.empty, 'folder')} without a video, which become no class: {_named(self.empty)}")
        return found

    @property
    def other_files(self) -> str:
        """The number of files that are no videos by their suffix, with the most frequent suffixes; empty if there are none."""
        kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in self.others.most_common(SHOWN))
        total = self.others.total()
        return f"{total} file{'s' * (total > 1)} without a video's suffix ({kinds})" if total else ""


def listed_files(location: str | Path, root: Path, follow_links: bool = False) -> Listing | None:
    """What a folder or a glob lists; None if `location` is neither.

    Hidden files and folders are passed over. Linked folders are listed only with `follow_links`, and then each real folder
    once, so a loop of links ends; a glob also goes through a link that one of its levels (not `**`) matches. Raises ListError
    for what is no pattern, OSError for a folder that cannot be read.
    """
    place = place_of(location, root)
    if place.is_dir():
        return _scan(place, follow_links, lambda path: os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES)
    parts = Path(known_path(location)).expanduser().parts
    first = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    if first is None:
        return None
    base, pattern = place_of(Path(*parts[:first]), root), parts[first:]
    if "**" in pattern:
        if not base.is_dir():
            return Listing(base, [], Counter())
        return _scan(base, follow_links, lambda path: _matches(path.split("/"), pattern))
    try:
        found = [path.relative_to(base).as_posix() for path in base.glob("/".join(pattern)) if path.is_file()]
    except ValueError as error:
        raise ListError(f"{place} is no pattern of paths: {error}") from error
    return Listing(base, sorted(path for path in found if not re.search(r"(^|/)\.", path)), Counter())


def cells_of_files(place: Path, root: Path, listing: Listing, labelled: bool) -> Cells:
    """A folder's or glob's files: one outside the root starts its own. Labels are names of folders. Raises ListError."""
    folder, paths, base = place.is_dir(), listing.paths, listing.base
    if not paths:
        what = f"no video files ({' '.join(sorted(VIDEO_SUFFIXES))}) below" if folder else "no files match"
        rest = [*listing.skipped(labelled), *([f"skipped: {listing.other_files}"] if listing.others else [])]
        raise ListError("; ".join([f"{what} {place}", *rest]))
    loose = [path for path in paths if "/" not in path]
    if labelled and folder and loose:
        raise ListError(
            f"{len(loose)} files are directly in {place}, as {', '.join(loose[:10])}: a labelled folder has one folder a class"
        )
    if base.is_relative_to(root):
        prefix = base.relative_to(root).as_posix() + "/" if base != root else ""
    else:
        root, prefix = base, ""
    table = pd.DataFrame({"line": np.zeros(len(paths), np.int64), "path": texts(prefix + path for path in paths)})
    if labelled:
        table["label"] = texts(utf8_name(path.split("/")[0] if folder else Path(base, path).parent.name) for path in paths)
    return Cells(str(place), root, table, Faults(table["line"].to_numpy()), named=True)


def is_video(file: Path) -> bool:
    """Whether a file is a video by its suffix or its first bytes, and so no list."""
    if file.suffix.lower() in VIDEO_SUFFIXES:
        return True
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    try:
        return bool(set(head) & set(NOT_TEXT)) and bool(container_of(head))
    except ValueError:
        return False


def named_videos(folder: Path) -> Mapping[str, list[os.DirEntry]]:
    """What may be the video of a name: files with a video's suffix, without it, and folders."""
    places = defaultdict(list)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            places[entry.name].append(entry)
        elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
            places[Path(entry.name).stem].append(entry)
    return places


def _scan(base: Path, follow_links: bool, counts: Callable[[str], bool]) -> Listing:
    """All files below a folder that count. Linked folders come after all others, so that a video keeps its real path."""
    paths, links, others, top = list[str](), list[str](), Counter[str](), set[str]()
    queue, linked, seen = [(str(base), "")], list[tuple[str, str]](), set[tuple[int, int]]()
    while queue or linked:
        if queue:
            where, prefix = queue.pop()
        else:
            name, where = heapq.heappop(linked)
            prefix = f"{name}/"
        if follow_links:
            status = os.stat(where)
            if (status.st_dev, status.st_ino) in seen:
                links.append(prefix[:-1])
                continue
            seen.add((status.st_dev, status.st_ino))
        with os.scandir(where) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.name.startswith("."):
                    continue
                link = entry.is_symlink()
                folder = os.path.isdir(entry.path) if link else entry.is_dir()  # the latter raises for a link to itself
                if folder and not prefix:
                    top.add(name)
                if folder and not link:
                    queue.append((entry.path, f"{name}/"))
                elif folder and follow_links:
                    heapq.heappush(linked, (name, entry.path))
                elif folder:
                    links.append(name)
                elif counts(name):
                    paths.append(name)
                elif link and not os.path.exists(entry.path):
                    links.append(name)
                else:
                    others[os.path.splitext(name)[1].lower()] += 1
    empty = top - {path.split("/")[0] for path in paths} - set(links)
    return Listing(base, sorted(paths), others, follow_links, sorted(links), sorted(empty))


def _matches(names: list[str], pattern: tuple[str, ...]) -> bool:
    """Whether the parts of a path are those of a pattern, in which `**` stands for any number of folders."""
    if not pattern or not names:
        return not pattern and not names
    if pattern[0] == "**":
        return any(_matches(names[start:], pattern[1:]) for start in range(len(names)))
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' * (len(names) > 1)}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
