"""Own videos: the settings that follow from the lists, and what is impossible with them, before anything is decoded."""

import copy
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmae_lab.data.video_lists import ListError, ListSettings, VideoList, lacking_classes, read_pretrain, read_split
from vmae_lab.data.video_lists.folders import listed_files
from vmae_lab.data.video_lists.formats import absolute
from vmae_lab.utils.atomic_io import local_name, readable

HOLD_OUT = {"validation": 0.15, "test": 0.25}  # if there is no list of either
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
LABELS = 160  # the default number of labelled clips
FEWEST_LABELS = 8  # if no more can be drawn evenly from the classes, all videos are used
NAMED = 10  # classes that a message names
LOOKED_AT = 100  # files of a list


def fit_to_lists(tree: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """A recipe's parameters with what `data.lists` leaves open filled in, and printed in one line; the same without lists.

    A scale of the embedded data set loses what belongs to that alone. `given` are the dotted names that the user set: these
    values stay, as do all that are possible. What cannot be read changes nothing here: `list_problems` reports it.
    """
    fitted = copy.deepcopy(dict(tree))
    data, evaluate = fitted.get("data"), fitted.get("evaluate")
    lists = data.get("lists") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(lists, dict) or not isinstance(evaluate, dict):
        return fitted
    _drop("motionworld", data, "data", given)
    _drop("pretrain_limits", data, "data", given)
    _drop("sources", evaluate, "evaluate", given)
    if not _sources(lists).issuperset(data.get("pretrain_sources") or ()):
        _drop("pretrain_sources", data, "data", given)
    changes = [
        *_choose_lists(lists, given),
        *_choose_split(lists, evaluate, given),
        *_fit_labels(lists, evaluate, given),
    ]
    if changes:
        print(f"set from data.lists: {'; '.join(changes)}")
    return fitted


def fit_warm_ups(tree: Mapping[str, Any], before: Mapping[str, Any], given: Collection[str], place: str = "") -> dict[str, Any]:
    """A recipe's parameters with the warm-ups of trainings shortened that the user gave no more steps than the warm-up has.

    It is in proportion to the steps that they had `before`. A warm-up that was `given` stays.
    """
    fitted = dict(tree)
    for name, value in tree.items():
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping):
            fitted[name] = fit_warm_ups(value, before[name], given, f"{place}{name}.")
    match tree, before:
        case {"steps": int() | float() as steps, "warmup_steps": int(warm_up)}, {"steps": int(had)}:
            if 0 < steps <= warm_up < had and not _is_given(f"{place}warmup_steps", given):
                fitted["warmup_steps"] = int(warm_up * steps // had)
    return fitted


def list_problems(
    lists: ListSettings, used: Iterable[str], labels: Iterable[tuple[str, int]] = (), ahead: bool = True
) -> list[str]:  # fmt: skip
    """What makes lists impossible for the splits `used` (`pretrain`, `train`, `validation`, `test`), one line each.

    `labels`: settings and the labelled clips that they draw from the train split. `ahead`: if none of the lists is there yet,
    nothing is reported, unless there is a root and classes have to be counted; whether the listed files are there is not looked
    at.
    """
    used, root, problems = list(dict.fromkeys(used)), absolute(lists.root), list[str]()
    uncounted = lists.classes or set(used) <= {"pretrain"} or not root.is_dir()
    if ahead and uncounted and all(lists.missing(split) for split in used):
        return []
    for split in used:
        try:
            videos, *others = read_pretrain(lists).values() if split == "pretrain" else [read_split(lists, split, warn=False)]
        except (ListError, OSError) as error:
            problems.append(str(error) if root.is_dir() else _no_root(lists, root))
            continue
        if any(one.root == root for one in (videos, *others)) and not root.is_dir():
            problems.append(_no_root(lists, root))
            continue
        if split != "pretrain" and len(videos.classes) < 2:
            problems.append(
                f"data.lists.train: all videos are of one class, {', '.join(videos.classes)}, so there is nothing to classify; "
                "list two classes or more, or give data.lists.pretrain alone to pre-train without labels"
            )
        problems += [] if ahead else filter(None, (_no_files(lists, split, one) for one in (videos, *others)))
        if split == "train":
            there = videos.table["label"].value_counts()
            fewest, number = videos.classes[there.idxmin()], there.min()
            problems += [
                f"{name} {count} are {count // len(there)} videos a class, and class '{fewest}' of data.lists.train has "
                f"{number}: set it to {number * len(there)} at most, or to null to use all there are"
                for name, count in labels if count % len(videos.classes) == 0 and count // len(there) > number
            ]  # fmt: skip
    return list(dict.fromkeys(problems))


def clip_count(lists: ListSettings, split: str) -> int:
    """How many videos a split has. Raises ListError."""
    return sum(map(len, read_pretrain(lists).values())) if split == "pretrain" else len(read_split(lists, split, warn=False))


def list_notes(lists: ListSettings, split: str) -> list[str]:
    """Which classes of a held-out list are left out of a split because they have too few videos, and which videos of a list of
    its own are trained on as well. Raises ListError.
    """
    if split != "train" and not lists.hold_out:
        train, own = (set(_files(read_split(lists, name, warn=False))) for name in ("train", split))
        if twice := sorted(train & own):
            return [
                f"data.lists.{split}: {len(twice)} of {len(own)} videos are in data.lists.train, too, so their accuracy says "
                f"little; first {readable(twice[0])}"
            ]
    lacking = lacking_classes(lists, split) if lists.hold_out else []
    more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    names = ", ".join(lacking[:NAMED]) + more
    return [f"data.lists.hold_out: classes with too few videos to be in {split}: {names}"] if lacking else []


def _files(videos: VideoList) -> list[str]:
    return [os.path.join(videos.root, path) for path in videos.table["path"]]


def _no_files(lists: ListSettings, split: str, videos: VideoList) -> str:
    """What is wrong if none of the files of a list is there, as with a wrong root; empty if some are. A few are looked at."""
    files = _files(videos)
    if any(os.path.lexists(local_name(file)) for file in files[:: max(1, len(files) // LOOKED_AT)]):
        return ""
    return (
        f"data.lists.{split}: none of the {len(files)} listed files is there, first {readable(files[0])}; set data.lists.root "
        "to the folder that the list's paths start from"
    )


def _no_root(lists: ListSettings, root: Path) -> str:
    if root.is_file():
        return (
            f"data.lists.root: {root} is a file; set data.lists.train to it, and root to the folder that its paths start from"
        )
    if any(letter in lists.root for letter in "*?["):
        return f"data.lists.root: {root} is no folder; set data.lists.train to the glob, and root to a folder above the videos"
    relative = "" if Path(lists.root).expanduser().is_absolute() else " (a relative root starts from the current folder)"
    return f"data.lists.root: there is no folder {root}{relative}; set it to the folder of your videos"


def _is_given(name: str, given: Collection[str]) -> bool:
    """Whether a setting, a section that it is in, or a part of it was set."""
    return any(f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}.") for other in given)


def _drop(name: str, section: dict[str, Any], place: str, given: Collection[str]) -> None:
    """Remove a setting of the embedded data set, unless the user set it."""
    if not _is_given(f"{place}.{name}", given):
        section.pop(name, None)


def _sources(lists: Mapping[str, Any]) -> set[str]:
    return set(lists["pretrain"]) if isinstance(lists.get("pretrain"), dict) else {"lists"}


def _choose_lists(lists: dict[str, Any], given: Collection[str]) -> Iterable[str]:
    """The lists below a root, and what is held out: nothing if the splits have lists of their own, or there are no labels."""
    chosen = isinstance(lists.get("root"), str) and "train" not in lists and not lists.get("pretrain")
    if chosen:
        yield _choose_folder(lists)
    with_lists = [name for name in ("pretrain", "validation", "test") if chosen or _is_given(f"data.lists.{name}", given)]
    held_elsewhere = any(lists.get(name) for name in with_lists if name != "pretrain" or not lists.get("train"))
    if held_elsewhere and not _is_given("data.lists.hold_out", given):
        lists.pop("hold_out", None)
    if lists.get("train") and not lists.keys() & {"hold_out", "validation", "test"}:
        lists["hold_out"] = dict(HOLD_OUT)
        yield f"data.lists.hold_out {HOLD_OUT}"


def _choose_folder(lists: dict[str, Any]) -> str:
    """The lists of a folder by what is in it: a folder per class, a folder per split, or videos alone."""
    root = absolute(lists["root"])
    try:
        listed = listed_files(".", root, follow_links=bool((lists.get("decoding") or {}).get("follow_links")))
    except OSError:  # it is reported where the list is read
        listed = None
    paths = listed.paths if listed else []
    folders = {path.split("/")[0] for path in paths if "/" in path}
    loose = sum("/" not in path for path in paths)
    splits = {SPLIT_FOLDERS[name.lower()]: name for name in folders if name.lower() in SPLIT_FOLDERS}
    if "train" in splits and len(splits) == len(folders) and all(path.count("/") > 1 for path in paths):
        lists.update(splits)
        return ", ".join(f"data.lists.{split} {name!r}" for split, name in sorted(splits.items()))
    if len(folders) == 1 and not loose and all(path.count("/") > 1 for path in paths):  # as archives are unpacked
        lists["train"] = next(iter(folders))
    elif len(paths) == loose > 0 or (len(folders) == 1 and not loose) or (splits and len(splits) == len(folders)):
        lists["pretrain"] = "."
        return f"data.lists.pretrain '.', without labels, since {root} has no folder per class"
    else:
        lists["train"] = "."
    return f"data.lists.train {lists['train']!r}" + (", a folder per class" if folders else "")


def _choose_split(lists: Mapping[str, Any], evaluate: dict[str, Any], given: Collection[str]) -> Iterable[str]:
    """Evaluate on the one of validation and test that there is a list of."""
    there = [name for name in ("validation", "test") if lists.get(name)]
    is_open = not lists.get("hold_out") and not _is_given("evaluate.split", given)
    if is_open and len(there) == 1 and evaluate.get("split", "test") != there[0]:
        evaluate["split"] = there[0]
        yield f"evaluate.split {there[0]}"


def _fit_labels(lists: Mapping[str, Any], evaluate: dict[str, Any], given: Collection[str]) -> Iterable[str]:
    """Numbers of labelled clips that the user did not set and that these lists cannot give."""
    probe = evaluate.setdefault("probe", {})
    places = [("evaluate.probe.labels", probe, "labels"), ("evaluate.finetune_labels", evaluate, "finetune_labels")]
    open_ones = [place for place in places if isinstance(place[1], dict) and not _is_given(place[0], given)]
    if not lists.get("train") or not open_ones:
        return
    try:
        settings = ListSettings(**lists)
        there = [] if settings.missing("train") else read_split(settings, "train", warn=False).table["label"].value_counts()
        classes = settings.class_count
    except (ValidationError, ListError, OSError):  # it is reported where the settings or the list are checked
        return
    for name, section, key in open_ones:
        count = section.get(key, LABELS)
        if isinstance(count, int) and (fitted := _labels_of(count, classes, list(there))) != count:
            section[key] = fitted
            yield f"{name} {'null, all labels' if fitted is None else fitted} in place of {count}"


def _labels_of(count: int, classes: int, there: list[int]) -> int | None:
    """About `count` labels, equally many per class, of classes with so many videos; None, all of them, if these are no more."""
    if count % classes == 0 and (not there or count // len(there) <= min(there)):
        return count
    if there and (sum(there) <= count or len(there) < classes):
        return None
    even = classes * min(max(1, count // classes), *there) if there else classes * max(1, count // classes)
    return even if even >= FEWEST_LABELS else None
