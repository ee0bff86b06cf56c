"""Derive settings from a user's lists of videos, and check the lists before any video is decoded."""

import copy
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmae_lab.data.video_lists import ListError, ListSettings, VideoList, lacking_classes, read_pretrain, read_split
from vmae_lab.data.video_lists.folders import listed_files
from vmae_lab.data.video_lists.formats import absolute
from vmae_lab.utils.atomic_io import local_name, readable
from vmae_lab.utils.counts import counted

HOLD_OUT = {"validation": 0.15, "test": 0.25}  # the default if neither has a list
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
LABELS = 160  # the default number of labeled clips
MIN_LABELS = 8  # if an equal number per class gives fewer labels, all labels are used
CLASSES_NAMED = 10  # at most, in a message
FILES_CHECKED = 100  # approximate number per list

# ---------------------------------------------------------------------------------------------------------------------------
# Settings that follow from others


def fit_warm_ups(
    tree: Mapping[str, Any], before: Mapping[str, Any], given: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """Return a recipe's values with shorter warm-ups for trainings to which the user gave no more steps than warm-up steps.

    A shortened warm-up keeps its proportion to the steps in `before`. Settings whose dotted names are in `given` were set by
    the user and are not changed.
    """
    fitted = dict(tree)
    for name, value in tree.items():
        if isinstance(value, Mapping) and isinstance(before.get(name), Mapping):
            fitted[name] = fit_warm_ups(value, before[name], given, f"{prefix}{name}.")
    match tree, before:
        case {"steps": int() | float() as steps, "warmup_steps": int(warm_up)}, {"steps": int(steps_before)}:
            if 0 < steps <= warm_up < steps_before and not _is_given(f"{prefix}warmup_steps", given):
                fitted["warmup_steps"] = int(warm_up * steps // steps_before)
    return fitted


def fit_to_lists(tree: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return a recipe's values with the settings that follow from `data.lists`, and print these in one line.

    Values of a scale that only the embedded data set can have are removed. Settings whose dotted names are in `given` were set
    by the user and are not changed. Without lists, or if a list cannot be read, nothing changes; `list_problems` reports lists
    that cannot be read.
    """
    fitted = copy.deepcopy(dict(tree))
    data, evaluate = fitted.get("data"), fitted.get("evaluate")
    lists = data.get("lists") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(lists, dict) or not isinstance(evaluate, dict):
        return fitted
    sources = set(lists["pretrain"]) if isinstance(lists.get("pretrain"), dict) else {"lists"}
    embedded = ["data.motionworld", "data.pretrain_limits", "evaluate.sources"]
    embedded += [] if sources.issuperset(data.get("pretrain_sources") or ()) else ["data.pretrain_sources"]
    for dotted in embedded:
        if not _is_given(dotted, given):
            section, name = dotted.split(".")
            fitted[section].pop(name, None)
    changes = [*_choose_lists(lists, given), *_choose_split(lists, evaluate, given), *_fit_labels(lists, evaluate, given)]
    if changes:
        print(f"set from data.lists: {'; '.join(changes)}")
    return fitted


def _is_given(name: str, given: Collection[str]) -> bool:
    """Return whether a setting, a section that contains it, or a part of it was set."""
    return any(f"{name}.".startswith(f"{other}.") or other.startswith(f"{name}.") for other in given)


def _choose_lists(lists: dict[str, Any], given: Collection[str]) -> Iterator[str]:
    """Choose the lists below a root, and what to hold out if neither validation nor test has a list."""
    only_root = isinstance(lists.get("root"), str) and "train" not in lists and not lists.get("pretrain")
    if only_root:
        yield _choose_folder(lists)
    own = [name for name in ("pretrain", "validation", "test") if only_root or _is_given(f"data.lists.{name}", given)]
    needs_no_hold_out = any(lists.get(name) for name in own if name != "pretrain" or not lists.get("train"))
    if needs_no_hold_out and not _is_given("data.lists.hold_out", given):
        lists.pop("hold_out", None)
    if lists.get("train") and not lists.keys() & {"hold_out", "validation", "test"}:
        lists["hold_out"] = dict(HOLD_OUT)
        yield f"data.lists.hold_out {HOLD_OUT}"


def _choose_folder(lists: dict[str, Any]) -> str:
    """Choose the lists of a root by its content: a folder per class, a folder per split, or only videos."""
    root = absolute(lists["root"])
    try:
        listing = listed_files(".", root, follow_links=bool((lists.get("decoding") or {}).get("follow_links")))
    except OSError:  # reported when the list is read
        listing = None
    paths = listing.paths if listing else []
    folders = {path.split("/")[0] for path in paths if "/" in path}
    all_in_subfolders = all(path.count("/") > 1 for path in paths)
    all_in_root = not folders and bool(paths)
    one_folder = len(folders) == 1 and all("/" in path for path in paths)
    splits = {SPLIT_FOLDERS[name.lower()]: name for name in folders if name.lower() in SPLIT_FOLDERS}
    only_splits = bool(splits) and len(splits) == len(folders)
    if "train" in splits and only_splits and all_in_subfolders:
        lists.update(splits)
        return ", ".join(f"data.lists.{split} {name!r}" for split, name in sorted(splits.items()))
    if one_folder and all_in_subfolders:  # an unpacked archive
        lists["train"] = next(iter(folders))
    elif all_in_root or one_folder or only_splits:
        lists["pretrain"] = "."
        return f"data.lists.pretrain '.' (no labels, because {root} has no folder per class)"
    else:
        lists["train"] = "."
    return f"data.lists.train {lists['train']!r}" + (" (a folder per class)" if folders else "")


def _choose_split(lists: Mapping[str, Any], evaluate: dict[str, Any], given: Collection[str]) -> Iterator[str]:
    """Select the split to evaluate on if only one of validation and test has a list."""
    listed = [name for name in ("validation", "test") if lists.get(name)]
    is_open = not lists.get("hold_out") and not _is_given("evaluate.split", given)
    if is_open and len(listed) == 1 and evaluate.get("split", "test") != listed[0]:
        evaluate["split"] = listed[0]
        yield f"evaluate.split {listed[0]}"


def _fit_labels(lists: Mapping[str, Any], evaluate: dict[str, Any], given: Collection[str]) -> Iterator[str]:
    """Fit the numbers of labeled clips that the user did not set to the videos of each class."""
    counts = {"evaluate.probe.labels": evaluate.setdefault("probe", {}), "evaluate.finetune_labels": evaluate}
    counts = {name: section for name, section in counts.items() if isinstance(section, dict) and not _is_given(name, given)}
    if not lists.get("train") or not counts:
        return
    try:
        settings = ListSettings(**lists)
        classes, videos = settings.class_count, list[int]()
        if not settings.missing("train"):
            videos = read_split(settings, "train", warn=False).table["label"].value_counts().tolist()
    except (ValidationError, ListError, OSError):  # reported when the settings or the list are checked
        return
    for dotted, section in counts.items():
        name = dotted.rpartition(".")[2]
        count = section.get(name, LABELS)
        if isinstance(count, int) and (fitted := _possible_labels(count, classes, videos)) != count:
            section[name] = fitted
            yield f"{dotted} {'null (all labels)' if fitted is None else fitted} instead of {count}"


def _possible_labels(count: int, classes: int, videos: list[int]) -> int | None:
    """Return about `count` labels, the same number per class. None (all labels) if the classes have too few for that.

    `videos` are the numbers of videos of the classes that have some. It is empty if the list does not exist yet.
    """
    if count % classes == 0 and (not videos or count // len(videos) <= min(videos)):
        return count
    if videos and (sum(videos) <= count or len(videos) < classes):
        return None
    even = classes * min(max(1, count // classes), *videos) if videos else classes * max(1, count // classes)
    return even if even >= MIN_LABELS else None


# ---------------------------------------------------------------------------------------------------------------------------
# Checks of the lists


def list_problems(
    lists: ListSettings, used: Iterable[str], labels: Iterable[tuple[str, int]] = (), ahead: bool = True
) -> list[str]:  # fmt: skip
    """Return what makes the splits `used` (`pretrain`, `train`, `validation`, `test`) impossible, one line per problem.

    `labels` has settings with the number of labeled clips that each draws from the train split. With `ahead`, the listed files
    need not exist. The lists need not exist either, unless the root exists and the classes have to be counted.
    """
    used, root, problems = list(dict.fromkeys(used)), absolute(lists.root), list[str]()
    must_count = not lists.classes and set(used) - {"pretrain"} and root.is_dir()
    if ahead and not must_count and all(lists.missing(split) for split in used):
        return []
    for split in used:
        try:
            parts = list(read_pretrain(lists).values()) if split == "pretrain" else [read_split(lists, split, warn=False)]
        except (ListError, OSError) as error:
            problems.append(str(error) if root.is_dir() else _no_root(lists, root))
            continue
        if not root.is_dir() and any(videos.root == root for videos in parts):
            problems.append(_no_root(lists, root))
            continue
        if split != "pretrain" and len(parts[0].classes) < 2:
            problems.append(
                f"data.lists.train: all videos are of one class, {', '.join(parts[0].classes)}; list at least two classes, or "
                "set only data.lists.pretrain to pre-train without labels"
            )
        if not ahead:
            problems += [line for videos in parts if (line := _no_files(split, videos))]
        if split == "train":
            classes, counts = parts[0].classes, parts[0].table["label"].value_counts()
            smallest, number = classes[counts.idxmin()], counts.min()
            problems += [
                f"{name}: for {counted(count, 'label')}, each class needs {counted(count // len(counts), 'video')}, but class "
                f"'{smallest}' of data.lists.train has {number}; set at most {number * len(counts)}, or null to use all labels"
                for name, count in labels if count % len(classes) == 0 and count // len(counts) > number
            ]  # fmt: skip
    return list(dict.fromkeys(problems))


def _no_files(split: str, videos: VideoList) -> str:
    """Return an error message if no file of a list exists, for example because the root is wrong. Checks only some files."""
    files = _files(videos)
    if any(os.path.lexists(local_name(file)) for file in files[:: max(1, len(files) // FILES_CHECKED)]):
        return ""
    return (
        f"data.lists.{split}: none of the {len(files)} listed files exists, for example {readable(files[0])}; set "
        "data.lists.root to the folder that the paths in the list are relative to"
    )


def _no_root(lists: ListSettings, root: Path) -> str:
    if root.is_file():
        return f"data.lists.root: {root} is a file; set data.lists.train to it, and root to the folder of its paths"
    if any(letter in lists.root for letter in "*?["):
        return f"data.lists.root: {root} is a glob; set data.lists.train to the glob, and root to a folder above the videos"
    relative = "" if Path(lists.root).expanduser().is_absolute() else " (the root is relative to the current folder)"
    return f"data.lists.root: there is no folder {root}{relative}; set it to the folder of your videos"


def list_notes(lists: ListSettings, split: str) -> list[str]:
    """Return notes on an evaluated split: classes with too few videos to hold some out, and videos that are trained on too.

    Raises ListError.
    """
    if lists.hold_out:
        if not (lacking := lacking_classes(lists, split)):
            return []
        more = f" and {len(lacking) - CLASSES_NAMED} more" if len(lacking) > CLASSES_NAMED else ""
        names = ", ".join(lacking[:CLASSES_NAMED]) + more
        return [f"data.lists.hold_out: classes with too few videos, which {split} does not have: {names}"]
    if split == "train":
        return []
    train, own = (set(_files(read_split(lists, name, warn=False))) for name in ("train", split))
    if not (twice := sorted(train & own)):
        return []
    return [
        f"data.lists.{split} shares {len(twice)} of {counted(len(own), 'video')} with data.lists.train, so the accuracy does "
        f"not measure generalization; for example {readable(twice[0])}"
    ]


def clip_count(lists: ListSettings, split: str) -> int:
    """Return the number of videos of a split. Raises ListError."""
    return sum(map(len, read_pretrain(lists).values())) if split == "pretrain" else len(read_split(lists, split, warn=False))


def _files(videos: VideoList) -> list[str]:
    return [os.path.join(videos.root, path) for path in videos.table["path"]]
