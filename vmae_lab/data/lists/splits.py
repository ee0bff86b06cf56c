"""The videos of every split and source, labelled by the same classes."""

import os
import re
import warnings
from hashlib import blake2b

import numpy as np
import pandas as pd

from vmae_lab.data.lists.formats import Faults, ListError, absolute, place_of
from vmae_lab.data.lists.reading import VideoList, read_list
from vmae_lab.data.lists.settings import SPLITS, HoldOut, ListSettings


def read_split(settings: ListSettings, split: str) -> VideoList:
    """A labelled split (`train`, `validation`, `test`), held out of the train list where the settings say so.

    Labels are of the train list's classes in every split. Raises ListError, naming the setting. Warns of classes that have no
    video in a split that is held out.
    """
    location = settings.train if settings.hold_out else getattr(settings, split)
    if location is None:
        raise ListError(f"data.lists.{split} is not given" + "; give it, or hold_out" * (split != "train"))
    try:
        if settings.hold_out:
            videos = read_list(location, settings.root, True, settings.classes, settings.decoding.follow_links)
            parts = _parts(videos, settings.hold_out, str(place_of(location, absolute(settings.root))))
            _check_parts(videos, parts, settings.hold_out, split)
            return VideoList(videos.root, videos.table[parts == split].reset_index(drop=True), videos.classes)
        own = split == "train" or settings.train is None
        classes = settings.classes if own else settings.class_names
        return read_list(location, settings.root, True, classes, settings.decoding.follow_links)
    except ListError as error:
        raise _named(f"data.lists.{split}", error) from error


def read_pretrain(settings: ListSettings) -> dict[str, VideoList]:
    """The videos to pre-train on by source, without labels; the train split, less what is held out, where none are given."""
    if settings.pretrain is None:
        videos = read_split(settings, "train")
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
    return _groups(read_split(settings, split), settings.hold_out.group, f"data.lists.{split}")


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


def _parts(videos: VideoList, hold_out: HoldOut, place: str) -> np.ndarray:
    """The split of each video, `(n,)`, by a hash of its group's name alone, so that new videos move no others."""
    codes, groups = pd.factorize(_groups(videos, hold_out.group, place))
    draws = [int.from_bytes(blake2b(os.fsencode(group), digest_size=6).digest(), "big") / 2**48 for group in groups]
    ends = [hold_out.test, hold_out.test + hold_out.validation]
    return np.array(["test", "validation", "train"])[np.searchsorted(ends, draws, side="right")][codes]


def _groups(videos: VideoList, pattern: str | None, place: str) -> np.ndarray:
    paths = videos.table["path"].to_numpy(object)
    if pattern is None:
        return paths
    found = [re.search(pattern, path) for path in paths]
    groups = np.array([match[min(match.re.groups, 1)] if match else None for match in found], object)
    faults = Faults(videos.table["line"].to_numpy())
    faults.add(pd.isna(groups), lambda row: f"{paths[row]!r} does not match hold_out.group {pattern!r}")
    faults.check(place)
    return groups


def _check_parts(videos: VideoList, parts: np.ndarray, hold_out: HoldOut, split: str) -> None:
    labels = {part: set(videos.table["label"][parts == part]) for part in SPLITS}
    for part in SPLITS:
        if not labels[part] and (part in ("train", split) or getattr(hold_out, part)):
            raise ListError(f"hold_out leaves the {part} split empty; the list has {len(videos)} videos")
    for part in dict.fromkeys(("train", split)):
        lacking = sorted(set.union(*labels.values()) - labels[part])
        if lacking:
            names = ", ".join(videos.classes[label] for label in lacking[:10])
            warnings.warn(f"hold_out leaves {len(lacking)} classes without a video in {part}: {names}", stacklevel=3)
