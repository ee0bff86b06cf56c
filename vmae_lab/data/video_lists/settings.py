"""Which lists of videos there are: validated settings, whose classes are counted and whose content is named."""

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

SPLITS = ("train", "validation", "test")


class SourceSettings(BaseModel):
    """One source to pre-train on: a list file, folder or glob below `root`, and how its clips are cut and drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    list: str = Field(..., min_length=1)
    root: str | None = Field(None, description="where the list's paths start; lists.root where left out")
    stride: int | None = Field(None, ge=1, description="frames between two frames of a clip; data.stride where left out")
    weight: float | None = Field(None, gt=0, description="share in the mixture, in proportion to the other weights")
    frame_pattern: str = Field(FRAMES, description="names in a folder of frames")

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern)


class ListSettings(BaseModel):
    """Lists of own or real videos, relative to `root`: any form that `read_list` takes.

    `pretrain` needs no labels: one list, or several sources by name; the train list where left out. `train`, `validation` and
    `test` are labelled; `hold_out` takes the last two from the first where they have no lists of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    pretrain: str | dict[str, SourceSettings] | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hold_out: HoldOut | None = None
    classes: int | None = Field(None, ge=2, description="counted from the train list where left out")
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
        """The sources to pre-train on by name, with their root and frame pattern filled in; one list is called "lists"."""
        alone = self.pretrain or self.train
        sources = self.pretrain if isinstance(self.pretrain, dict) else {"lists": SourceSettings(list=alone)}
        common = {"frame_pattern": self.frame_pattern}
        return {
            name: SourceSettings(**(common | source.model_dump(exclude_unset=True) | {"root": source.root or self.root}))
            for name, source in sources.items()
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """The train list's classes in label order; numbers where it names none or is not there yet. May raise ListError."""
        root = absolute(self.root)
        links = self.decoding.follow_links
        stamp = _stamp(self.train, root, links) if self.train else None
        if stamp is not None:
            return _class_names(self.train, root, self.classes, links, stamp)
        if self.classes is None:
            missing = f"there is no {place_of(self.train, root)}" if self.train else "there is no train list"
            raise ListError(f"data.lists: {missing} to count the classes in; give lists.classes")
        return numbered(self.classes)

    def missing(self, split: str) -> dict[str, Path]:
        """The lists that a split (`pretrain`, `train`, `validation`, `test`) is read from and that are not there, by setting.

        A folder or glob without a video is not there: a plan can be costed before there are any.
        """
        if split == "pretrain" and self.pretrain:
            place = "pretrain.{}" if isinstance(self.pretrain, dict) else "pretrain"
            lists = {place.format(name): (source.root, source.list) for name, source in self.pretrain_sources.items()}
        else:
            name = "train" if split == "pretrain" or self.hold_out else split
            lists = {name: (self.root, getattr(self, name))}
        places = {name: (location, absolute(root or self.root)) for name, (root, location) in lists.items() if location}
        links = self.decoding.follow_links
        return {name: place_of(at, root) for name, (at, root) in places.items() if not _is_there(at, root, links)}

    @property
    def held_out(self) -> tuple[VideoList, np.ndarray, bool]:
        """The train list, the split of each of its videos, and whether classes were divided one by one. Raises ListError."""
        assert self.train, "hold_out comes with a train list"
        assert self.hold_out, "nothing is held out"
        root, links = absolute(self.root), self.decoding.follow_links
        return _held_out(self.train, root, self.classes, self.hold_out, links, content_of(self.train, root, links))

    @property
    def class_count(self) -> int:
        """`classes`, or the number of classes in the train list, which is read for it. May raise ListError."""
        return self.classes or len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Names the lists' content, or their names while they are not there (a plan can be costed without them).

        The content of a file is its bytes, of a folder or glob the paths and sizes of its videos. How the train list is divided
        is part of it only if its classes were divided one by one.
        """
        labelled = {name: (self.root, getattr(self, name)) for name in SPLITS if getattr(self, name)}
        sources = {
            f"pretrain.{name}": (source.root or self.root, source.list) for name, source in self.pretrain_sources.items()
        }
        links = self.decoding.follow_links
        contents = {name: content_of(at, absolute(root), links) for name, (root, at) in (labelled | sources).items()}
        return fingerprint(contents | ({"hold_out": "per class"} if self._divides_classes else {}))

    @property
    def _divides_classes(self) -> bool:
        try:
            return self.hold_out is not None and self.held_out[2]
        except ListError:  # it is reported where the list is read
            return False


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless a name of pictures in a folder has a place for a number."""
    try:
        told = pattern.format(1) != pattern.format(2)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"frame_pattern {pattern!r} cannot be filled with a frame's number: {error!r}") from error
    if not told:
        raise ValueError(f"frame_pattern {pattern!r} has no place for a frame's number, as {FRAMES} has")


def _stamp(location: str, root: Path, follow_links: bool) -> tuple | None:
    """Changes when a list does, as far as one look tells; None where nothing is there."""
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


def content_of(location: str, root: Path, follow_links: bool = False) -> str:
    """Names what a list says: a file by its bytes, a folder or glob by the paths and sizes of its videos; where nothing is yet,
    by its place."""
    place = place_of(location, root)
    if place.is_file():
        with open(place, "rb") as file:
            return file_digest(file, "blake2b").hexdigest()
    listed = listed_files(location, root, follow_links)
    if listed is None or not listed.paths:
        return str(place)
    return fingerprint([[utf8_name(path), _size(listed.base / path)] for path in listed.paths])


def _is_there(location: str, root: Path, follow_links: bool) -> bool:
    if place_of(location, root).is_file():
        return True
    listed = listed_files(location, root, follow_links)
    return listed is not None and bool(listed.paths)


@lru_cache(maxsize=8)
def _held_out(
    train: str, root: Path, classes: int | None, hold_out: HoldOut, follow_links: bool, _content: str
) -> tuple[VideoList, np.ndarray, bool]:
    videos = read_list(train, root, True, classes, follow_links)
    groups = groups_in(videos, hold_out.group, str(place_of(train, root)))
    names = np.array(videos.classes, object)[videos.table["label"].to_numpy()]
    return videos, *split_by_groups(hold_out, groups, names)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1  # a link that leads nowhere
