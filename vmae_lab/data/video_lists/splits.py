"""The videos of every split and source, labelled by the same classes."""

import warnings
from collections.abc import Sequence

import numpy as np

from vmae_lab.data.video_lists.formats import ListError, absolute, place_of
from vmae_lab.data.video_lists.hold_out import HoldOut, groups_in
from vmae_lab.data.video_lists.reader import VideoList, read_list
from vmae_lab.data.video_lists.settings import SPLITS, ListSettings

NAMED = 10  # classes that a message names


def read_split(settings: ListSettings, split: str, warn: bool = True) -> VideoList:
    """A labelled split (`train`, `validation`, `test`), held out of the train list if the settings say so.

    Labels are of the train list's classes in every split. Raises ListError, naming the setting. Unless told otherwise, it warns
    of classes that have no video in a split that is held out.
    """
    location = settings.train if settings.hold_out else getattr(settings, split)
    if location is None:
        held_out = f", or set data.lists.hold_out, which takes {split} videos from the train list"
        raise ListError(f"data.lists.{split} is not given; give it{held_out if split != 'train' else ''}")
    try:
        if settings.hold_out:
            videos, parts, _ = settings.held_out
            _check_not_empty(videos, parts, settings.hold_out, split)
            lacking = lacking_classes(settings, split) if warn else []
            if lacking:
                told = f"hold_out leaves {len(lacking)} classes without a video in {split}: {_some(lacking)}"
                warnings.warn(told, stacklevel=2)
            return VideoList(videos.root, videos.table[parts == split].reset_index(drop=True), videos.classes)
        own = split == "train" or settings.train is None
        classes = settings.classes if own else settings.class_names
        return read_list(location, settings.root, True, classes, settings.decoding.follow_links)
    except ListError as error:
        raise _named(f"data.lists.{'train' if settings.hold_out else split}", error) from error


def lacking_classes(settings: ListSettings, split: str) -> list[str]:
    """The classes that have videos, but none in a split that is held out. Raises ListError."""
    videos, parts, _ = settings.held_out
    labels = videos.table["label"]
    return [videos.classes[label] for label in sorted(set(labels) - set(labels[parts == split]))]


def read_pretrain(settings: ListSettings) -> dict[str, VideoList]:
    """The videos to pre-train on by source, without labels; the train split, less what is held out, where none are given."""
    if settings.pretrain is None:
        videos = read_split(settings, "train", warn=False)
        return {"lists": VideoList(videos.root, videos.table.assign(label=np.int64(-1)), ())}
    lists = {}
    for name, source in settings.pretrain_sources.items():
        try:
            lists[name] = read_list(source.list, source.root or settings.root, follow_links=settings.decoding.follow_links)
        except ListError as error:
            where = f"pretrain.{name}" if isinstance(settings.pretrain, dict) else "pretrain"
            raise _named(f"data.lists.{where}", error) from error
    return lists


def groups_of(settings: ListSettings, split: str) -> np.ndarray | None:
    """The group of each video of a split, by which it was held out, in the order of `read_split`; None without groups."""
    if settings.hold_out is None or settings.hold_out.group is None:
        return None
    return groups_in(read_split(settings, split, warn=False), settings.hold_out.group, f"data.lists.{split}")


def read_all(settings: ListSettings) -> dict[str, tuple[VideoList, str]]:
    """Every list as it stands, nothing held out, by its setting, with the names of its frames; one that serves twice, once."""
    asked = {name: (settings.root, getattr(settings, name), settings.frame_pattern) for name in SPLITS}
    if settings.pretrain:
        asked |= {
            f"pretrain.{name}": (source.root or settings.root, source.list, source.frame_pattern)
            for name, source in settings.pretrain_sources.items()
        }
    lists, seen = {}, set()
    for name, (root, location, pattern) in asked.items():
        if location is None or (key := (place_of(location, absolute(root)), pattern)) in seen:
            continue
        seen.add(key)
        try:
            whole = name not in SPLITS or settings.hold_out
            links = settings.decoding.follow_links
            videos = read_list(location, root, name in SPLITS, settings.classes, links) if whole else read_split(settings, name)
        except ListError as error:
            raise _named(f"data.lists.{name}", error) from error
        lists[name] = (videos, pattern)
    return lists


def _named(setting: str, error: ListError) -> ListError:
    return error if str(error).startswith("data.lists.") else ListError(f"{setting}: {error}")


def _check_not_empty(videos: VideoList, parts: np.ndarray, hold_out: HoldOut, split: str) -> None:
    """Raise ListError if nothing is left of a split, or to train on."""
    for part in ("train", split):
        if (parts == part).any():
            continue
        if part == "train" or part in hold_out.held:
            needed = 3 if part == "validation" and hold_out.test else 2
            remedy = f"a class ({_some(videos.classes)}) needs at least {needed} {'groups' if hold_out.group else 'videos'}"
        else:
            remedy = f"set hold_out.{part} above 0"
        raise ListError(f"hold_out leaves the {part} split empty; the list has {len(videos)} videos; {remedy}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
