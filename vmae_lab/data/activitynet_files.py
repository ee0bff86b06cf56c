"""Segments of untrimmed videos, with what is done in each: the JSON files of ActivityNet, read, checked and written.

Annotations, in which ActionFormer has THUMOS14 and FineAction too: `{"database": {video: {"subset", "duration", "fps",
"annotations": [{"segment": [start, end], "label", "label_id"}]}}}`, where "fps" and "label_id" may be left out. Results:
`{"results": {video: [{"segment": [start, end], "label", "score"}]}}`. Times are seconds; other keys are passed over.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from vmae_lab.data.video_lists.formats import ListError
from vmae_lab.utils.atomic_io import write_text

VIDEOS = ["video", "subset", "duration", "fps"]
SEGMENTS = ["video", "start", "end", "label"]
PREDICTIONS = [*SEGMENTS, "score"]
TEXT = ("video", "subset", "label")
# By which a segment may end after its video: durations are rounded. The rest is for the rounding of the sum itself.
SLACK = 0.05 + 1e-9
Beyond = Literal["refuse", "keep"]


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is done when: `videos` (columns VIDEOS, fps NaN where the file has none) and `segments` (columns SEGMENTS), in the
    order of the file, and the names of the `classes` in the order of their numbers, over all subsets."""

    videos: pd.DataFrame
    segments: pd.DataFrame
    classes: tuple[str, ...]

    def subset(self, *names: str) -> "Annotations":
        """The videos of some subsets, in small or capital letters, and all classes, so that training and test agree on them.

        Raises ListError for a subset that is not there.
        """
        subsets = self.videos.subset.str.lower()
        absent = [name for name in names if name.lower() not in set(subsets)]
        if absent:
            there = ", ".join(sorted(set(self.videos.subset))) or "none"
            raise ListError(f"no video is of the subset {', '.join(map(repr, absent))}; the annotations have: {there}")
        videos = self.videos[subsets.isin([name.lower() for name in names])]
        segments = self.segments[self.segments.video.isin(videos.video)]
        return Annotations(videos.reset_index(drop=True), segments.reset_index(drop=True), self.classes)


def read_annotations(file: Path, beyond: Beyond = "refuse") -> Annotations:
    """The annotations of a file. A video without any is background. Classes are in the order of `label_id`, whose numbers may
    have gaps, where every annotation has one; else of their names.

    A segment that starts after its video, or ends more than .05 s after it, is refused; with `beyond="keep"` it stands as
    annotated. The official evaluations keep such segments, though nothing can find them: THUMOS14 as ActionFormer has it has
    22 in video_test_0000270 alone, so that figures compare with published ones only if they are kept.
    Raises ListError with the videos and annotations (counted from 1) that are malformed.
    """
    if beyond not in ("refuse", "keep"):
        raise ValueError(f"beyond is {beyond!r}: 'refuse' or 'keep' is expected")
    videos, segments, faults, numbering = [], [], [], _Numbering()
    for video, entry in _entries(file, "database").items():
        wrong = _wrong_video(entry)
        if wrong:
            faults.append(f"video {video!r}: {wrong}")
            continue
        videos.append((video, entry["subset"], entry["duration"], entry.get("fps")))
        for place, annotation in enumerate(entry.get("annotations", []), 1):
            wrong = _wrong_annotation(annotation, entry["duration"], beyond) or numbering.wrong(annotation)
            if wrong:
                faults.append(f"video {video!r}, annotation {place}: {wrong}")
            else:
                segments.append((video, *annotation["segment"], annotation["label"]))
    _check(file, faults)
    return Annotations(_table(videos, VIDEOS), _table(segments, SEGMENTS), numbering.classes())


def write_annotations(file: Path, annotations: Annotations) -> None:
    """Write annotations, whole or not at all, with `label_id` from 0 in the order of the classes.

    Read again they are the same where a video's segments stand together, in the order of the videos, and each class has one.
    Raises ListError for a segment of a video or of a class that the annotations do not have.
    """
    database: dict[str, dict] = {}
    for video, subset, duration, fps in _rows(annotations.videos, VIDEOS):
        known = {} if pd.isna(fps) else {"fps": fps}
        database[video] = {"subset": subset, "duration": duration, **known, "annotations": []}
    numbers = {name: number for number, name in enumerate(annotations.classes)}
    for video, start, end, label in _rows(annotations.segments, SEGMENTS):
        if video not in database or label not in numbers:
            raise ListError(f"cannot write {file}: {label!r} in {video!r} is of a video or class that the annotations lack")
        database[video]["annotations"].append({"segment": [start, end], "label": label, "label_id": numbers[label]})
    _write(file, {"version": "vmae_lab", "taxonomy": [], "database": database})


def read_predictions(file: Path) -> pd.DataFrame:
    """What a model said, a row each: columns PREDICTIONS, in the order of the file. Segments are as they stand, also those that
    end before they start: nothing overlaps with them. Raises ListError with the predictions that are malformed.
    """
    rows, faults = [], []
    for video, said in _entries(file, "results").items():
        if not isinstance(said, list):
            faults.append(f"video {video!r}: a list of predictions is expected")
            continue
        for place, one in enumerate(said, 1):
            wrong = _wrong_prediction(one)
            if wrong:
                faults.append(f"video {video!r}, prediction {place}: {wrong}")
            else:
                rows.append((video, *one["segment"], one["label"], one["score"]))
    _check(file, faults)
    return _table(rows, PREDICTIONS)


def write_predictions(file: Path, predictions: pd.DataFrame) -> None:
    """Write what a model said (columns PREDICTIONS) as ActivityNet's evaluation takes it, whole or not at all.

    Read again it is the same, to the last bit, where a video's rows stand together. Raises ListError for what is no number.
    """
    results: dict[str, list] = {}
    for place, (video, start, end, label, score) in enumerate(_rows(predictions, PREDICTIONS), 1):
        if not all(map(_number, (start, end, score))):
            raise ListError(
                f"cannot write {file}: prediction {place}, {label!r} in {video!r}, has segment [{start}, {end}] and score "
                f"{score}: finite numbers are expected; see whether the model's weights are finite"
            )
        results.setdefault(video, []).append({"segment": [start, end], "label": label, "score": score})
    _write(file, {"version": "vmae_lab", "external_data": {}, "results": results})


@dataclass
class _Numbering:
    """Names of classes and their numbers, as annotations give them one after the other."""

    numbers: dict[str, int | None] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    complete: bool = True

    def wrong(self, annotation: dict) -> str | None:
        """What is wrong with a well formed annotation's `label_id`, given those before; None where nothing is."""
        label, number = annotation["label"], annotation.get("label_id")
        if number is None:
            self.complete = False
            self.numbers.setdefault(label, None)
            return None
        if self.names.setdefault(number, label) != label:
            return f"label_id {number} is of {label!r} here, and of {self.names[number]!r} before: each class needs its own"
        if self.numbers.get(label) not in (None, number):
            return f"{label!r} has label_id {number} here, and {self.numbers[label]} before: a class has one"
        self.numbers[label] = number
        return None

    def classes(self) -> tuple[str, ...]:
        order = {name: number for name, number in self.numbers.items() if self.complete and number is not None}
        return tuple(sorted(self.numbers, key=lambda name: (order.get(name, 0), name)))


def _wrong_video(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "an object with subset, duration and annotations is expected"
    if not (isinstance(entry.get("subset"), str) and entry["subset"]):
        return f"{_said(entry, 'subset')}: a name, as 'test', is expected"
    if not (_number(entry.get("duration")) and entry["duration"] > 0):
        return f"{_said(entry, 'duration')}: the video's seconds, above 0, are expected"
    fps = entry.get("fps")
    if fps is not None and not (_number(fps) and fps > 0):
        return f"{_said(entry, 'fps')}: frames a second, above 0, are expected, or none where they are not known"
    if not isinstance(entry.get("annotations", []), list):
        return f"{_said(entry, 'annotations')}: a list is expected"
    return None


def _wrong_annotation(annotation: Any, duration: float, beyond: Beyond) -> str | None:
    wrong = _wrong_form(annotation)
    if wrong:
        return wrong
    number = annotation.get("label_id")
    if number is not None and type(number) is not int:
        return f"{_said(annotation, 'label_id')}: a whole number is expected"
    start, end = annotation["segment"]
    what = f"segment [{start:g}, {end:g}]"
    if start < 0:
        return f"{what} starts before the video"
    if end <= start:
        return f"{what} does not end after it starts"
    if beyond == "refuse" and (start >= duration or end - duration > SLACK):
        return (
            f"{what} {'starts' if start >= duration else 'ends'} after the video, of {duration:g} s: put one of them right, or "
            'read the file with beyond="keep", by which it stands as annotated, as the official evaluations have it'
        )
    return None


def _wrong_prediction(one: Any) -> str | None:
    wrong = _wrong_form(one)
    if wrong or _number(one.get("score")):
        return wrong
    return f"{_said(one, 'score')}: a finite number is expected"


def _wrong_form(one: Any) -> str | None:
    """What annotations and predictions have in common."""
    if not isinstance(one, dict):
        return "an object with segment and label is expected"
    segment = one.get("segment")
    if not (isinstance(segment, list) and len(segment) == 2 and all(map(_number, segment))):
        return f"{_said(one, 'segment')}: two finite numbers, its start and end in seconds, are expected"
    if not (isinstance(one.get("label"), str) and one["label"]):
        return f"{_said(one, 'label')}: the name of a class is expected"
    return None


def _said(entry: dict, key: str) -> str:
    return f"{key} {entry[key]!r}"[:120] if key in entry else f"{key} is missing"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _entries(file: Path, key: str) -> dict[str, Any]:
    """What a file has by video."""
    try:
        read = json.loads(Path(file).read_bytes())  # bytes: a byte-order mark and UTF-16 are understood
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise ListError(f"{file} is not JSON: {error}") from error
    entries = read.get(key) if isinstance(read, dict) else None
    if not isinstance(entries, dict):
        raise ListError(f'{file} has no "{key}" by video: ActivityNet\'s layout, {{"{key}": {{video: …}}}}, is expected')
    return entries


def _check(file: Path, faults: list[str]) -> None:
    if not faults:
        return
    rest = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
    raise ListError(f"{file}: {len(faults)} fault{'s' * (len(faults) > 1)}; " + "; ".join(faults[:10]) + rest)


def _table(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).astype({name: str if name in TEXT else float for name in columns})


def _rows(table: pd.DataFrame, columns: list[str]) -> zip:
    """A table's rows as plain numbers and text."""
    return zip(*(table[name].astype(str if name in TEXT else float).tolist() for name in columns), strict=True)


def _write(file: Path, value: dict) -> None:
    write_text(Path(file), json.dumps(value, allow_nan=False))
