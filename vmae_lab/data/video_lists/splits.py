"""Settings of all lists, their classes and fingerprint, and the videos of every split and source."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

import numpy as np
from pydantic import Field

from vmae_lab.data.decoding.container import FRAMES, VideoSettings
from vmae_lab.data.video_lists.folders import listed_files
from vmae_lab.data.video_lists.formats import ListError, absolute, list_path
from vmae_lab.data.video_lists.hold_out import HoldOut, groups_in, split_by_groups
from vmae_lab.data.video_lists.labels import numbered
from vmae_lab.data.video_lists.reader import VideoList, read_list
from vmae_lab.utils.atomic_io import fingerprint, utf8_name
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.settings import Settings

SPLITS = ("train", "validation", "test")


def check_pattern(pattern: str) -> None:
    """Raise ValueError if the file name pattern of a frame folder has no field for the frame number."""
    try:
        differ = pattern.format(1) != pattern.format(2)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"frame_pattern {pattern!r} does not accept a frame number: {error!r}") from error
    if not differ:
        raise ValueError(f"frame_pattern {pattern!r} has no field for the frame number; use, e.g., {FRAMES}")


class SourceSettings(Settings):
    """One pre-training source: a list file, folder or glob below `root`, and how its clips are sampled."""

    list: str = Field(..., min_length=1)
    root: str | None = Field(None, description="folder of the paths; lists.root by default")
    stride: int | None = Field(None, ge=1, description="a clip takes every stride-th frame; data.stride by default")
    weight: float | None = Field(None, gt=0, description="share in the mixture, relative to the other weights")
    frame_pattern: str = Field(FRAMES, description="file names in a folder of frames")

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern)


class ListSettings(Settings):
    """Lists of videos, relative to `root`, in any form that `read_list` reads.

    `pretrain` needs no labels: one list, or several sources by name; the train list by default. `train`, `validation` and
    `test` have labels. `hold_out` takes validation and test videos from the train list.
    """

    root: str = "."
    pretrain: str | dict[str, SourceSettings] | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hold_out: HoldOut | None = None
    classes: int | None = Field(None, ge=2, description="number of classes; counted in the train list by default")
    frame_pattern: str = Field(FRAMES, description="file names in folders of frames of the labeled lists")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern)
        problems = []
        if not self.pretrain and not self.train:
            problems.append("lists: set pretrain (videos without labels), train (labeled videos), or both")
        elif self.hold_out and (self.validation or self.test or not self.train):
            problems.append("lists: hold_out divides the train list; set train, and remove validation and test")
        if isinstance(self.pretrain, dict):
            bare = [name for name, source in self.pretrain.items() if source.weight is None]
            if 0 < len(bare) < len(self.pretrain):
                problems.append(f"lists.pretrain: set a weight for all sources or for none; {', '.join(bare)} have none")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def pretrain_sources(self) -> dict[str, SourceSettings]:
        """Pre-training sources by name, with root and frame pattern filled in. The name of a single list is "lists"."""
        single = self.pretrain or self.train
        sources = single if isinstance(single, dict) else {"lists": SourceSettings(list=single or "")}
        common = {"frame_pattern": self.frame_pattern}
        return {
            name: SourceSettings(**(common | source.model_dump(exclude_unset=True) | {"root": source.root or self.root}))
            for name, source in sources.items()
        }

    @property
    def locations(self) -> dict[str, tuple[str, str, str]]:
        """All lists: setting -> root, list and frame pattern. Without `pretrain`, `pretrain.lists` is the train list."""
        locations = {name: (self.root, getattr(self, name), self.frame_pattern) for name in SPLITS if getattr(self, name)}
        for name, source in self.pretrain_sources.items():
            locations[f"pretrain.{name}"] = (source.root or self.root, source.list, source.frame_pattern)
        return locations

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names of the train list in label order; numbers if there are no names or no list yet. May raise ListError."""
        root, links = absolute(self.root), self.decoding.follow_links
        stamp = _stamp(self.train, root, links) if self.train else None
        if self.train and stamp is not None:
            return _class_names(self.train, root, self.classes, links, stamp)
        if self.classes is None:
            missing = f"there is no {list_path(self.train, root)}" if self.train else "there is no train list"
            raise ListError(f"data.lists: {missing}, so the number of classes is unknown; set lists.classes")
        return numbered(self.classes)

    @property
    def class_count(self) -> int:
        """`classes`, or the number of classes in the train list. May raise ListError."""
        return self.classes or len(self.class_names)

    def missing(self, split: str) -> dict[str, Path]:
        """Return the lists of a split (`pretrain`, `train`, `validation`, `test`) that do not exist yet: setting -> path.

        A folder or glob without videos counts as missing. The cost of a plan can be estimated before the videos exist.
        """
        if split == "pretrain" and self.pretrain:
            lists = {_setting(self, name): (source.root, source.list) for name, source in self.pretrain_sources.items()}
        else:
            name = "train" if split == "pretrain" or self.hold_out else split
            lists = {name: (None, getattr(self, name))}
        missing = {}
        for name, (root, location) in lists.items():
            path = list_path(location, absolute(root or self.root)) if location else None
            if path is None or path.is_file():
                continue
            listed = listed_files(location, absolute(root or self.root), self.decoding.follow_links)
            if listed is None or not listed.paths:
                missing[name] = path
        return missing

    @property
    def held_out(self) -> tuple[VideoList, np.ndarray, bool]:
        """The train list, the split of each video, and whether classes were divided separately. Raises ListError."""
        assert self.train, "hold_out needs a train list"
        assert self.hold_out
        root, links = absolute(self.root), self.decoding.follow_links
        return _held_out(self.train, root, self.classes, self.hold_out, links, content_of(self.train, root, links))

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the lists, or of their paths if they do not exist yet.

        The content of a file is its bytes; of a folder or glob, the paths and sizes of its videos. The division of the train
        list is part of it only if its classes were divided separately.
        """
        links = self.decoding.follow_links
        contents = {name: content_of(listed, absolute(root), links) for name, (root, listed, _) in self.locations.items()}
        try:
            per_class = self.hold_out is not None and self.held_out[2]
        except ListError:  # reported when the list is read
            per_class = False
        return fingerprint(contents | ({"hold_out": "per class"} if per_class else {}))


def content_of(location: str, root: Path, follow_links: bool = False) -> str:
    """Return a hash of a list's content, or its path if it does not exist yet."""
    path = list_path(location, root)
    if path.is_file():
        with open(path, "rb") as file:
            return file_digest(file, "blake2b").hexdigest()
    listed = listed_files(location, root, follow_links)
    if listed is None or not listed.paths:
        return str(path)
    files = [(utf8_name(path), listed.base / path) for path in listed.paths]
    return fingerprint([[name, file.stat().st_size if file.exists() else -1] for name, file in files])


def _stamp(location: str, root: Path, follow_links: bool) -> tuple | None:
    """Return a cheap value that changes with a list (time and size, or paths), or None if the list does not exist."""
    path = list_path(location, root)
    if path.exists():
        return path.stat().st_mtime_ns, path.stat().st_size
    listed = listed_files(location, root, follow_links)
    return tuple(listed.paths) or None if listed else None


@lru_cache(maxsize=8)
def _class_names(location: str, root: Path, classes: int | None, follow_links: bool, _stamp: tuple) -> tuple[str, ...]:
    with _setting_in_errors("train"):
        return read_list(location, root, True, classes, follow_links).classes


@lru_cache(maxsize=8)
def _held_out(
    train: str, root: Path, classes: int | None, hold_out: HoldOut, follow_links: bool, _content: str
) -> tuple[VideoList, np.ndarray, bool]:
    videos = read_list(train, root, True, classes, follow_links)
    groups = groups_in(videos, hold_out.group, str(list_path(train, root)))
    names = np.array(videos.classes, object)[videos.table["label"].to_numpy()]
    return videos, *split_by_groups(hold_out, groups, names)


# ----------------------------------------------------------------------------------------------------------------------
# Videos of splits and sources


def read_split(settings: ListSettings, split: str, warn: bool = True) -> VideoList:
    """Read a labeled split (`train`, `validation`, `test`), from its own list or held out from the train list.

    Labels index the classes of the train list in every split. With `warn`, it warns of classes without a video in a held-out
    split. Raises ListError with the setting.
    """
    location = settings.train if settings.hold_out else getattr(settings, split)
    if location is None:
        held_out = f", or set data.lists.hold_out to take {split} videos from the train list"
        raise ListError(f"data.lists.{split} is not set; set it{held_out if split != 'train' else ''}")
    with _setting_in_errors("train" if settings.hold_out else split):
        if not settings.hold_out:
            own = split == "train" or settings.train is None
            classes = settings.classes if own else settings.class_names
            return read_list(location, settings.root, True, classes, settings.decoding.follow_links)
        videos, parts, _ = settings.held_out
        _check_not_empty(videos, parts, settings.hold_out, split)
        if warn and (lacking := lacking_classes(settings, split)):
            message = f"hold_out leaves {counted(len(lacking), 'class')} without a video in {split}: {first_of(lacking)}"
            warnings.warn(message, stacklevel=2)
        return VideoList(videos.root, videos.table[parts == split].reset_index(drop=True), videos.classes)


def read_pretrain(settings: ListSettings) -> dict[str, VideoList]:
    """Read the pre-training videos by source, without labels. By default, they are the train split."""
    if settings.pretrain is None:
        videos = read_split(settings, "train", warn=False)
        return {"lists": VideoList(videos.root, videos.table.assign(label=np.int64(-1)), ())}
    lists = {}
    for name, source in settings.pretrain_sources.items():
        root, remedy = source.root or settings.root, ""
        if settings.train and isinstance(settings.pretrain, str) and not list_path(source.list, absolute(root)).exists():
            remedy = "; to pre-train on the train list, set data.lists.pretrain to null"
        with _setting_in_errors(_setting(settings, name), remedy):
            lists[name] = read_list(source.list, root, follow_links=settings.decoding.follow_links)
    return lists


def read_all(settings: ListSettings) -> dict[str, tuple[VideoList, str]]:
    """Read every list once, without holding out videos: setting -> videos and their frame pattern."""
    lists, seen = {}, set()
    for name, (root, location, pattern) in settings.locations.items():
        if (key := (list_path(location, absolute(root)), pattern)) in seen:
            continue
        seen.add(key)
        with _setting_in_errors(name):
            if name in SPLITS and not settings.hold_out:
                videos = read_split(settings, name)
            else:
                videos = read_list(location, root, name in SPLITS, settings.classes, settings.decoding.follow_links)
        lists[name] = (videos, pattern)
    return lists


def lacking_classes(settings: ListSettings, split: str) -> list[str]:
    """Return the classes that have videos, but none in a held-out split. Raises ListError."""
    videos, parts, _ = settings.held_out
    labels = videos.table["label"]
    return [videos.classes[label] for label in sorted(set(labels) - set(labels[parts == split]))]


def groups_of(settings: ListSettings, split: str) -> np.ndarray | None:
    """Return the group of each video of a split, in the order of `read_split`, or None if hold_out has no groups."""
    if settings.hold_out is None or settings.hold_out.group is None:
        return None
    return groups_in(read_split(settings, split, warn=False), settings.hold_out.group, f"data.lists.{split}")


def _setting(settings: ListSettings, source: str) -> str:
    return f"pretrain.{source}" if isinstance(settings.pretrain, dict) else "pretrain"


@contextmanager
def _setting_in_errors(setting: str, remedy: str = "") -> Iterator[None]:
    """Add the setting and a remedy to the ListErrors of the block."""
    try:
        yield
    except ListError as error:
        if str(error).startswith("data.lists."):
            raise
        raise ListError(f"data.lists.{setting}: {error}{remedy}") from error


def _check_not_empty(videos: VideoList, parts: np.ndarray, hold_out: HoldOut, split: str) -> None:
    """Raise ListError if the split or the train split has no videos."""
    for part in ("train", split):
        if (parts == part).any():
            continue
        if part == "train" or part in hold_out.held:
            required = 3 if part == "validation" and hold_out.test else 2
            what = "groups" if hold_out.group else "videos"
            remedy = f"a class ({first_of(videos.classes)}) needs at least {required} {what}"
        else:
            remedy = f"set hold_out.{part} above 0"
        raise ListError(f"hold_out leaves the {part} split empty ({counted(len(videos), 'video')} in the list); {remedy}")
