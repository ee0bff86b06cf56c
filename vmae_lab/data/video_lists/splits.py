"""The lists of a data set: settings, their classes and content, and the videos of every split and source."""

import warnings
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.decoding.container import FRAMES, VideoSettings
from vmae_lab.data.video_lists.folders import listed_files
from vmae_lab.data.video_lists.formats import ListError, absolute, place_of
from vmae_lab.data.video_lists.hold_out import HoldOut, groups_in, split_by_groups
from vmae_lab.data.video_lists.labels import numbered
from vmae_lab.data.video_lists.reader import VideoList, read_list
from vmae_lab.utils.atomic_io import fingerprint, utf8_name
from vmae_lab.utils.errors import first_of

SPLITS = ("train", "validation", "test")


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless a name of pictures in a folder has a place for a number."""
    try:
        differ = pattern.format(1) != pattern.format(2)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"frame_pattern {pattern!r} cannot be filled with a frame's number: {error!r}") from error
    if not differ:
        raise ValueError(f"frame_pattern {pattern!r} has no place for a frame's number, as {FRAMES} has")


class SourceSettings(BaseModel):
    """One source to pre-train on: a list file, folder or glob below `root`, and how its clips are cut and drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    list: str = Field(..., min_length=1)
    root: str | None = Field(None, description="where the list's paths start; lists.root by default")
    stride: int | None = Field(None, ge=1, description="frames between two frames of a clip; data.stride by default")
    weight: float | None = Field(None, gt=0, description="share in the mixture, in proportion to the other weights")
    frame_pattern: str = Field(FRAMES, description="names in a folder of frames")

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern)


class ListSettings(BaseModel):
    """Lists of own or real videos, relative to `root`, in any form that `read_list` takes.

    `pretrain` needs no labels: one list, or several sources by name; the train list by default. `train`, `validation` and
    `test` are labelled; `hold_out` takes the last two from the train list.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    pretrain: str | dict[str, SourceSettings] | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hold_out: HoldOut | None = None
    classes: int | None = Field(None, ge=2, description="number of classes; counted in the train list by default")
    frame_pattern: str = Field(FRAMES, description="names in a folder of frames, of the labelled lists")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern)
        problems = []
        if not self.pretrain and not self.train:
            problems.append("lists: give pretrain (videos without labels), train (labelled videos), or both")
        elif self.hold_out and (self.validation or self.test or not self.train):
            problems.append("lists: hold_out splits the train list; give train, and no validation or test list")
        if isinstance(self.pretrain, dict):
            bare = [name for name, source in self.pretrain.items() if source.weight is None]
            if 0 < len(bare) < len(self.pretrain):
                problems.append(f"lists.pretrain: give all sources a weight or none; {', '.join(bare)} have none")
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def pretrain_sources(self) -> dict[str, SourceSettings]:
        """The sources to pre-train on by name, with root and frame pattern filled in. A single list is called "lists"."""
        single = self.pretrain or self.train
        sources = single if isinstance(single, dict) else {"lists": SourceSettings(list=single or "")}
        common = {"frame_pattern": self.frame_pattern}
        return {
            name: SourceSettings(**(common | source.model_dump(exclude_unset=True) | {"root": source.root or self.root}))
            for name, source in sources.items()
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The train list's classes in label order; numbers if it names none or does not exist yet. May raise ListError."""
        root, links = absolute(self.root), self.decoding.follow_links
        stamp = _stamp(self.train, root, links) if self.train else None
        if self.train and stamp is not None:
            return _class_names(self.train, root, self.classes, links, stamp)
        if self.classes is None:
            missing = f"there is no {place_of(self.train, root)}" if self.train else "there is no train list"
            raise ListError(f"data.lists: {missing} to count the classes in; give lists.classes")
        return numbered(self.classes)

    @property
    def class_count(self) -> int:
        """`classes`, or the number of classes in the train list. May raise ListError."""
        return self.classes or len(self.class_names)

    def missing(self, split: str) -> dict[str, Path]:
        """The lists of a split (`pretrain`, `train`, `validation`, `test`) that do not exist yet, by setting.

        A folder or glob without a video does not exist yet: a plan's cost can be estimated before there are any videos.
        """
        if split == "pretrain" and self.pretrain:
            lists = {_setting(self, name): (source.root, source.list) for name, source in self.pretrain_sources.items()}
        else:
            name = "train" if split == "pretrain" or self.hold_out else split
            lists = {name: (None, getattr(self, name))}
        missing = {}
        for name, (root, location) in lists.items():
            place = place_of(location, absolute(root or self.root)) if location else None
            if place is None or place.is_file():
                continue
            listed = listed_files(location, absolute(root or self.root), self.decoding.follow_links)
            if listed is None or not listed.paths:
                missing[name] = place
        return missing

    @property
    def held_out(self) -> tuple[VideoList, np.ndarray, bool]:
        """The train list, the split of each of its videos, and whether classes were divided one by one. Raises ListError."""
        assert self.train, "hold_out needs a train list"
        assert self.hold_out
        root, links = absolute(self.root), self.decoding.follow_links
        return _held_out(self.train, root, self.classes, self.hold_out, links, content_of(self.train, root, links))

    @property
    def fingerprint(self) -> str:
        """A hash of the lists' content, or of their names while they do not exist.

        The content of a file is its bytes, of a folder or glob the paths and sizes of its videos. How the train list is divided
        is part of it only if its classes were divided one by one.
        """
        lists = {name: (self.root, getattr(self, name)) for name in SPLITS if getattr(self, name)}
        for name, source in self.pretrain_sources.items():
            lists[f"pretrain.{name}"] = (source.root or self.root, source.list)
        links = self.decoding.follow_links
        contents = {name: content_of(location, absolute(root), links) for name, (root, location) in lists.items()}
        try:
            per_class = self.hold_out is not None and self.held_out[2]
        except ListError:  # reading the list will report it
            per_class = False
        return fingerprint(contents | ({"hold_out": "per class"} if per_class else {}))


def content_of(location: str, root: Path, follow_links: bool = False) -> str:
    """Return a hash of a list's content, or its path if it does not exist yet."""
    place = place_of(location, root)
    if place.is_file():
        with open(place, "rb") as file:
            return file_digest(file, "blake2b").hexdigest()
    listed = listed_files(location, root, follow_links)
    if listed is None or not listed.paths:
        return str(place)
    files = [(utf8_name(path), listed.base / path) for path in listed.paths]
    return fingerprint([[name, file.stat().st_size if file.exists() else -1] for name, file in files])


def _stamp(location: str, root: Path, follow_links: bool) -> tuple | None:
    """Return a value that changes with a list, as far as a quick look tells, or None if it does not exist."""
    place = place_of(location, root)
    if place.exists():
        return place.stat().st_mtime_ns, place.stat().st_size
    listed = listed_files(location, root, follow_links)
    return tuple(listed.paths) or None if listed else None


@lru_cache(maxsize=8)
def _class_names(location: str, root: Path, classes: int | None, follow_links: bool, _stamp: tuple) -> tuple[str, ...]:
    try:
        return read_list(location, root, True, classes, follow_links).classes
    except ListError as error:
        raise ListError(f"data.lists.train: {error}") from error


@lru_cache(maxsize=8)
def _held_out(
    train: str, root: Path, classes: int | None, hold_out: HoldOut, follow_links: bool, _content: str
) -> tuple[VideoList, np.ndarray, bool]:
    videos = read_list(train, root, True, classes, follow_links)
    groups = groups_in(videos, hold_out.group, str(place_of(train, root)))
    names = np.array(videos.classes, object)[videos.table["label"].to_numpy()]
    return videos, *split_by_groups(hold_out, groups, names)


# ----------------------------------------------------------------------------------------------------------------------
# Videos of splits and sources


def read_split(settings: ListSettings, split: str, warn: bool = True) -> VideoList:
    """Read a labelled split (`train`, `validation`, `test`), held out of the train list if the settings say so.

    Labels index the train list's classes in every split. Raises ListError with the setting. With `warn`, it warns of classes
    without a video in a split that is held out.
    """
    location = settings.train if settings.hold_out else getattr(settings, split)
    if location is None:
        held_out = f", or set data.lists.hold_out, which takes {split} videos from the train list"
        raise ListError(f"data.lists.{split} is not given; give it{held_out if split != 'train' else ''}")
    try:
        if not settings.hold_out:
            own = split == "train" or settings.train is None
            classes = settings.classes if own else settings.class_names
            return read_list(location, settings.root, True, classes, settings.decoding.follow_links)
        videos, parts, _ = settings.held_out
        _check_not_empty(videos, parts, settings.hold_out, split)
        if warn and (lacking := lacking_classes(settings, split)):
            message = f"hold_out leaves {len(lacking)} classes without a video in {split}: {first_of(lacking)}"
            warnings.warn(message, stacklevel=2)
        return VideoList(videos.root, videos.table[parts == split].reset_index(drop=True), videos.classes)
    except ListError as error:
        raise _with_setting("train" if settings.hold_out else split, error) from error


def read_pretrain(settings: ListSettings) -> dict[str, VideoList]:
    """Read the unlabelled videos to pre-train on, by source. By default they are the train split."""
    if settings.pretrain is None:
        videos = read_split(settings, "train", warn=False)
        return {"lists": VideoList(videos.root, videos.table.assign(label=np.int64(-1)), ())}
    lists = {}
    for name, source in settings.pretrain_sources.items():
        try:
            lists[name] = read_list(source.list, source.root or settings.root, follow_links=settings.decoding.follow_links)
        except ListError as error:
            raise _with_setting(_setting(settings, name), error) from error
    return lists


def read_all(settings: ListSettings) -> dict[str, tuple[VideoList, str]]:
    """Read every list once, with nothing held out: setting -> videos and their frame pattern."""
    wanted = {name: (settings.root, getattr(settings, name), settings.frame_pattern) for name in SPLITS}
    if settings.pretrain:
        for name, source in settings.pretrain_sources.items():
            wanted[f"pretrain.{name}"] = (source.root or settings.root, source.list, source.frame_pattern)
    lists, seen = {}, set()
    for name, (root, location, pattern) in wanted.items():
        if location is None or (key := (place_of(location, absolute(root)), pattern)) in seen:
            continue
        seen.add(key)
        try:
            if name in SPLITS and not settings.hold_out:
                videos = read_split(settings, name)
            else:
                videos = read_list(location, root, name in SPLITS, settings.classes, settings.decoding.follow_links)
        except ListError as error:
            raise _with_setting(name, error) from error
        lists[name] = (videos, pattern)
    return lists


def lacking_classes(settings: ListSettings, split: str) -> list[str]:
    """Return the classes that have videos, but none in a split that is held out. Raises ListError."""
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


def _with_setting(setting: str, error: ListError) -> ListError:
    return error if str(error).startswith("data.lists.") else ListError(f"data.lists.{setting}: {error}")


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
        raise ListError(f"hold_out leaves the {part} split empty; the list has {len(videos)} videos; {remedy}")
