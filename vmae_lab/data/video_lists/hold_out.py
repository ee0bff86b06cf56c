"""Division of the train list into train, validation and test splits."""

import os
import re
from collections import Counter
from hashlib import blake2b

import numpy as np
import pandas as pd
from pydantic import Field

from vmae_lab.data.video_lists.formats import Faults
from vmae_lab.data.video_lists.reader import VideoList
from vmae_lab.utils.settings import Settings


class HoldOut(Settings):
    """Shares of the train list that are held out for validation and test, from every class."""

    validation: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)
    group: str | None = Field(None, description="regular expression on paths; videos with the same first group stay together")

    def model_post_init(self, _context: object) -> None:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"hold_out: validation {self.validation:g} and test {self.test:g} leave no videos to train on; reduce them"
            )
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise ValueError(f"hold_out.group {self.group!r} is not a regular expression: {error}") from error

    @property
    def held(self) -> dict[str, float]:
        """The share of each held-out split, if it is not 0."""
        return {name: share for name, share in (("test", self.test), ("validation", self.validation)) if share}

    def counts(self, groups: int) -> Counter[str]:
        """Return the groups of a class per held-out split: at least one if one remains for training; test has priority."""
        counts = Counter({name: max(1, round(groups * share)) for name, share in self.held.items()})
        while counts and counts.total() >= groups:
            counts[min(counts, key=lambda name: (-counts[name], name == "test"))] -= 1
        return counts


def groups_in(videos: VideoList, pattern: str | None, name: str) -> np.ndarray:
    """Return the group of each video, `(n,)`: the match of the pattern in its path, or its path if it is None.

    Raises ListError.
    """
    paths = videos.table["path"].to_numpy(object)
    if pattern is None:
        return paths
    found = [re.search(pattern, path) for path in paths]
    groups = np.array([match[min(match.re.groups, 1)] if match else None for match in found], object)
    faults = Faults(videos.table["line"].to_numpy())
    faults.add(pd.isna(groups), lambda row: f"{paths[row]!r} does not match hold_out.group {pattern!r}")
    faults.check(name)
    return groups


def split_by_groups(hold_out: HoldOut, groups: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the split of each video, `(n,)`, and whether every class was divided separately.

    The name of a group is hashed to a number in [0, 1), and the shares divide this range into splits. So new videos do not move
    others. If a class then lacks a split although it has enough groups, every class is divided separately, in the order of
    these numbers: a class of three or more groups is in all splits, of two in train and test, of one in train. Groups are never
    divided. A group with several classes is assigned by the class with the fewest groups.
    """
    codes, names = pd.factorize(groups)
    draws = np.array([int.from_bytes(blake2b(os.fsencode(name), digest_size=6).digest(), "big") / 2**48 for name in names])
    ends = [hold_out.test, hold_out.test + hold_out.validation]
    by_share = np.array(["test", "validation", "train"], object)[np.searchsorted(ends, draws, side="right")]
    pairs = pd.DataFrame({"class": classes, "code": codes}).drop_duplicates()
    members = {name: rows.to_numpy() for name, rows in pairs.groupby("class")["code"]}
    if all({"train", *(+hold_out.counts(len(rows)))} <= set(by_share[rows]) for rows in members.values()):
        return by_share[codes], False
    split = np.full(len(names), "", object)
    for name in sorted(members, key=lambda name: (len(members[name]), name)):
        rows = sorted(members[name], key=lambda row: (draws[row], names[row]))
        assigned, free = Counter(split[rows]), [row for row in rows if not split[row]]
        for part, count in hold_out.counts(len(rows)).items():
            taken = max(0, min(count - assigned[part], len(free) - (assigned["train"] == 0)))
            split[free[:taken]], free = part, free[taken:]
        split[free] = "train"
    return split[codes], True
