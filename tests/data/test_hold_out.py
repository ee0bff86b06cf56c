"""Held-out splits: classes with enough videos are in all splits, groups are not divided, earlier splits do not change."""

import os
from collections import defaultdict
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae_lab.data.video_lists import HoldOut, ListError, ListSettings, read_split
from vmae_lab.data.video_lists.hold_out import split_by_groups

SHARES = st.sampled_from([(0.15, 0.25), (0.15, 0.15), (0.0, 0.45), (0.2, 0.0), (0.4, 0.5), (0.01, 0.01), (0.5, 0.3)])


def by_shares(hold_out: HoldOut, groups: list[str]) -> np.ndarray:
    """Return the splits of the rule that earlier versions used."""
    draws = np.array([int.from_bytes(blake2b(os.fsencode(name), digest_size=6).digest(), "big") / 2**48 for name in groups])
    validation = draws < hold_out.test + hold_out.validation
    return np.where(draws < hold_out.test, "test", np.where(validation, "validation", "train"))


def parts_by_class(parts, classes) -> dict[str, list[str]]:
    found = defaultdict(list)
    for part, name in zip(parts, classes, strict=True):
        found[name].append(part)
    return found


def wanted(hold_out: HoldOut, number: int) -> set[str]:
    held = [name for name in ("test", "validation") if getattr(hold_out, name)]
    return set(["train", *held][:number])


@pytest.mark.slow
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), SHARES, st.integers(0, 10**6))
@settings(max_examples=400, deadline=None)
def test_every_class_is_in_as_many_splits_as_possible(sizes, shares, salt):
    hold_out = HoldOut(validation=shares[0], test=shares[1])
    classes = np.array([f"c{c}" for c, size in enumerate(sizes) for _ in range(size)], object)
    paths = np.array([f"{name}/{salt}-{i}.mp4" for i, name in enumerate(classes)], object)
    parts, by_class = split_by_groups(hold_out, paths, classes)
    for name, found in parts_by_class(parts, classes).items():
        assert wanted(hold_out, len(found)) <= set(found), name
    before = by_shares(hold_out, paths)
    sound = all(wanted(hold_out, len(found)) <= set(found) for found in parts_by_class(before, classes).values())
    assert by_class == (not sound)
    if sound:
        assert parts.tolist() == before.tolist(), "earlier splits do not change"
    order = np.random.default_rng(salt).permutation(len(paths))
    again, _ = split_by_groups(hold_out, paths[order], classes[order])
    assert again.tolist() == parts[order].tolist(), "the order of the list does not matter"


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=60), SHARES)
@settings(max_examples=200, deadline=None)
def test_groups_are_not_divided_even_if_classes_share_them(videos, shares):
    groups = np.array([f"person{person}" for person, _ in videos], object)
    classes = np.array([f"c{label}" for _, label in videos], object)
    parts, _ = split_by_groups(HoldOut(validation=shares[0], test=shares[1]), groups, classes)
    where = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        where[group].add(part)
    assert all(len(found) == 1 for found in where.values())
    assert set(parts) <= {"train", "validation", "test"}


@pytest.mark.parametrize("people", [3, 4, 9])
def test_groups_with_all_classes_are_in_all_splits(people):
    groups = np.array([f"person{i}" for i in range(people) for _ in range(4)], object)
    classes = np.array([f"c{c}" for _ in range(people) for c in range(4)], object)
    parts, _ = split_by_groups(HoldOut(validation=0.15, test=0.25), groups, classes)
    assert all(set(found) == {"train", "validation", "test"} for found in parts_by_class(parts, classes).values())


def lists_of(root, sizes: dict[str, int], **hold_out) -> ListSettings:
    for name, number in sizes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (root / name / f"v{i:02d}.mp4").touch()
    return ListSettings(root=str(root), train=".", hold_out=HoldOut(**hold_out))


def counted(lists: ListSettings) -> dict[str, list[int]]:
    splits = [read_split(lists, name) for name in ("train", "validation", "test")]
    return {name: [int((split.table.label == label).sum()) for split in splits] for label, name in enumerate(lists.class_names)}


@pytest.mark.parametrize("names", ["abc", ("wave", "jump", "run"), ("1", "2", "10")])
def test_three_classes_of_four_videos(tmp_path, names):
    lists = lists_of(tmp_path, dict.fromkeys(names, 4), validation=0.15, test=0.25)
    assert counted(lists) == {name: [2, 1, 1] for name in names}


def test_a_class_of_two_is_in_train_and_test_and_a_class_of_one_gives_a_warning(tmp_path):
    lists = lists_of(tmp_path, {"two": 2, "many": 30, "alone": 1})
    with pytest.warns(UserWarning, match="without a video in test: alone"):
        test = read_split(lists, "test")
    found = [int((split.table.label == 2).sum()) for split in (read_split(lists, "train"), test)]
    assert (lists.class_names[2], found) == ("two", [1, 1])
    lists = lists_of(tmp_path / "singles", {"left": 1, "right": 1})
    assert len(read_split(lists, "train")) == 2
    for split, number in (("test", 2), ("validation", 3)):
        message = rf"data\.lists\.train: hold_out leaves the {split} split empty.*left, right\) needs at least {number} videos"
        with pytest.raises(ListError, match=message):
            read_split(lists, split)


def test_the_fingerprint_depends_on_a_separate_division_of_classes(tmp_path):
    """Otherwise, a finished stage of the old split would be reused."""
    sound = lists_of(tmp_path / "sound", {"a": 60, "b": 60})
    assert not sound.held_out[2]
    plain = sound.model_copy(update={"hold_out": None})
    assert sound.fingerprint == plain.fingerprint, "unchanged"
    few = lists_of(tmp_path / "few", {"a": 3, "b": 3})
    assert few.held_out[2]
    assert few.fingerprint != few.model_copy(update={"hold_out": None}).fingerprint
    assert len(few.held_out[0]) == 6
    (tmp_path / "few/b/v03.mp4").touch()
    assert len(few.held_out[0]) == 7, "a changed folder is read again"
