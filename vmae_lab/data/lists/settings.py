"""Which lists of videos there are: validated settings, whose classes are counted and whose content is named."""

import re
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.lists.folders import listed_files
from vmae_lab.data.lists.formats import ListError, absolute, place_of
from vmae_lab.data.lists.labels import numbered
from vmae_lab.data.lists.reading import read_list
from vmae_lab.data.video.screen import FRAMES, VideoSettings
from vmae_lab.files import fingerprint, utf8_name

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


class HoldOut(BaseModel):
    """Validation and test videos taken from the train list: about these shares of its groups, by a hash of each one's name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    group: str | None = Field(None, description="regular expression on the path; what its first group finds stays together")

    def model_post_init(self, _context: object) -> None:
        if self.validation + self.test >= 1:
            raise ValueError(f"hold_out: validation {self.validation:g} and test {self.test:g} leave nothing to train on")
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise ValueError(f"hold_out.group {self.group!r} is not a regular expression: {error}") from error


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
        if not self.pretrain and not self.train:
            raise ValueError("lists: give pretrain (videos without labels), train (labelled videos), or both")
        if self.hold_out and (self.validation or self.test or not self.train):
            raise ValueError("lists: hold_out splits the train list; give train, and no validation or test list beside it")
        if isinstance(self.pretrain, dict):
            bare = [name for name, source in self.pretrain.items() if source.weight is None]
            if 0 < len(bare) < len(self.pretrain):
                raise ValueError(f"lists.pretrain: give all sources a weight or none; {', '.join(bare)} have none")

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

    @property
    def train_is_there(self) -> bool:
        """Whether the train list can be read yet: a plan can be costed without it."""
        return self.train is not None and _stamp(self.train, absolute(self.root), self.decoding.follow_links) is not None

    @property
    def class_count(self) -> int:
        """`classes`, or the number of classes in the train list, which is read for it. May raise ListError."""
        return self.classes or len(self.class_names)

    @property
    def fingerprint(self) -> str:
        """Names the lists' content, or their names while they are not there (a plan can be costed without them).

        The content of a file is its bytes, of a folder or glob the paths and sizes of its videos.
        """
        labelled = {name: (self.root, getattr(self, name)) for name in SPLITS if getattr(self, name)}
        sources = {
            f"pretrain.{name}": (source.root or self.root, source.list) for name, source in self.pretrain_sources.items()
        }
        links = self.decoding.follow_links
        return fingerprint({name: content_of(at, absolute(root), links) for name, (root, at) in (labelled | sources).items()})


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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1  # a link that leads nowhere
