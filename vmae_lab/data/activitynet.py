"""ActivityNet-style data: untrimmed videos and the segments in which actions happen; settings, files and dataset.

Annotations, also of THUMOS14 (in ActionFormer's version) and FineAction, are JSON: `{"database": {video: {"subset", "duration",
"fps", "annotations": [{"segment": [start, end], "label", "label_id"}]}}}`, in which "fps" and "label_id" are optional. Results
are `{"results": {video: [{"segment": [start, end], "label", "score"}]}}`. Times are seconds; other keys are ignored.
"""

import json
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, ValidationInfo, model_validator
from torch import Tensor

from vmae_lab.data.dataset import EmbeddedOrLists
from vmae_lab.data.decoding import VideoError, VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.motionworld.untrimmed import UntrimmedWorldSettings, open_untrimmed_world
from vmae_lab.data.motionworld.writer import SPLITS, Split
from vmae_lab.data.video_dataset import VideoDataset, clips_of
from vmae_lab.data.video_features import FeatureFolder, VideoFeatures, open_features
from vmae_lab.data.video_lists import VideoList
from vmae_lab.data.video_lists.folders import named_videos
from vmae_lab.data.video_lists.formats import ListError, absolute, check_faults, place_of
from vmae_lab.data.video_lists.splits import content_of
from vmae_lab.utils.atomic_io import fingerprint, write_text
from vmae_lab.utils.errors import first_of

VIDEOS = ["video", "subset", "duration", "fps"]
SEGMENTS = ["video", "start", "end", "label"]
PREDICTIONS = [*SEGMENTS, "score"]
TEXT = ("video", "subset", "label")
# Seconds by which a segment may end after its video, since durations are rounded. The rest is for the rounding of the sum.
SLACK = 0.05 + 1e-9
RATES = 0.01  # relative difference between a video's rate and the annotated one that is accepted: 29.97 is annotated as 30
OFF = 0.1  # relative difference between the length of features and the annotated duration that is accepted
Beyond = Literal["refuse", "keep"]

# Settings ------------------------------------------------------------------------------------------------------------


class SegmentLists(BaseModel):
    """Annotations in ActivityNet's JSON layout, with a folder of their videos or of pre-extracted features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    annotations: str = Field(description="JSON, relative to the root: durations, rates, segments, labels, subsets")
    videos: str | None = Field(None, description="folder of the videos, `<name>.<suffix>`; their features are extracted")
    features: FeatureFolder | None = None
    train: tuple[str, ...] = Field(description="names of the annotations' subsets to train on")
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    rate: float | None = Field(None, gt=0, description="frames per second of all videos whose annotations have none")
    beyond: Beyond = Field("refuse", description="segments that end after their video")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        if (self.videos is None) == (self.features is None):
            raise ValueError("give one of videos (a folder of them) and features (a folder of pre-extracted features)")

    @property
    def annotation_file(self) -> Path:
        return place_of(self.annotations, absolute(self.root))

    @property
    def folder(self) -> Path:
        """The folder of the videos. Raises ListError if there are features instead."""
        if self.videos is None:
            raise ListError("videos.lists.videos: no folder of videos is set, only one of features")
        return place_of(self.videos, absolute(self.root))

    @property
    def fingerprint(self) -> str:
        """Hash of the annotations and of pre-extracted features, or of their paths if they do not exist yet.

        Videos matter only through their features, see `films`.
        """
        root = absolute(self.root)
        features = self.features and self.features.content(root)
        return fingerprint([content_of(self.annotations, root), features, self.train, self.validation, self.test])

    def films(self, split: Split) -> str:
        """Hash of the names and sizes of a split's videos, whatever their annotations; of a path if these do not exist yet."""
        if not self.annotation_file.is_file():
            return fingerprint([str(self.annotation_file), self.videos])
        names = read_annotations(self.annotation_file, "keep").subset(*getattr(self, split)).videos.video
        files = named_videos(self.folder) if self.folder.is_dir() else {}
        return fingerprint([(name, [file.stat().st_size for file in files.get(name, [])]) for name in sorted(names)])


class UntrimmedSettings(EmbeddedOrLists[UntrimmedWorldSettings, SegmentLists]):
    """The embedded untrimmed videos, or annotations with videos or features."""

    section = "videos"

    def films(self, split: Split) -> str:
        """Hash of what determines the features of a split's videos."""
        given = self.given
        return given.films(split) if isinstance(given, SegmentLists) else given.fingerprint

    @property
    def extracted(self) -> bool:
        """Whether an encoder of ours extracts the features."""
        return self.lists is None or self.lists.features is None


# JSON files ----------------------------------------------------------------------------------------------------------

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class _Video(BaseModel):
    subset: Name
    duration: Annotated[Number, Field(gt=0)]
    fps: Annotated[Number, Field(gt=0)] | None = None
    annotations: list[Any] = []


class _Segment(BaseModel):
    segment: tuple[Number, Number]
    label: Name


class _Prediction(_Segment):
    score: Number


class _Annotation(_Segment):
    label_id: StrictInt | None = None

    @model_validator(mode="after")
    def _check_times(self, info: ValidationInfo) -> Self:
        (start, end), context = self.segment, info.context or {}
        duration, what = context["duration"], f"segment [{start:g}, {end:g}]"
        if start < 0:
            raise ValueError(f"{what} starts before the video")
        if end <= start:
            raise ValueError(f"{what} does not end after it starts")
        if context["beyond"] == "refuse" and (start >= duration or end - duration > SLACK):
            raise ValueError(
                f"{what} {'starts' if start >= duration else 'ends'} after the video, which lasts {duration:g} s: correct one "
                'of them, or read the file with beyond="keep", which keeps the segment as the official evaluations do'
            )
        return self


@dataclass(frozen=True, eq=False)
class Annotations:
    """`videos` (columns VIDEOS, fps NaN if the file has none) and `segments` (columns SEGMENTS), in the order of the file.

    `classes`: names in the order of their numbers, over all subsets.
    """

    videos: pd.DataFrame
    segments: pd.DataFrame
    classes: tuple[str, ...]

    def subset(self, *names: str) -> "Annotations":
        """The videos of some subsets (letter case is ignored) with the classes of all, so that training and test agree on them.

        Raises ListError for an unknown subset.
        """
        subsets = self.videos.subset.str.lower()
        if absent := [name for name in names if name.lower() not in set(subsets)]:
            known = ", ".join(sorted(set(self.videos.subset))) or "none"
            raise ListError(f"no video is of the subset {', '.join(map(repr, absent))}; the annotations have: {known}")
        videos = self.videos[subsets.isin([name.lower() for name in names])]
        segments = self.segments[self.segments.video.isin(videos.video)]
        return Annotations(videos.reset_index(drop=True), segments.reset_index(drop=True), self.classes)


def read_annotations(file: Path, beyond: Beyond = "refuse") -> Annotations:
    """The annotations of a file. A video without annotations is background.

    Classes are in the order of `label_id`, which may have gaps, if every annotation has one; otherwise in alphabetical order. A
    segment that starts after its video, or ends more than 0.05 s after it, is refused; `beyond="keep"` keeps it as the official
    evaluations do, although nothing can find it: without the 22 segments in THUMOS14's video_test_0000270 alone, results do not
    compare with published ones. Raises ListError, which names the malformed videos and annotations (counted from 1).
    """
    if beyond not in ("refuse", "keep"):
        raise ValueError(f"beyond is {beyond!r}: 'refuse' or 'keep' is expected")
    videos, segments, faults = [], [], []
    names, numbers, numbered = dict[int, str](), dict[str, int](), True  # of the classes so far
    for name, entry in _read_entries(file, "database").items():
        try:
            video = _Video.model_validate(entry)
        except ValidationError as error:
            faults.append(f"video {name!r}: {_cause(error)}")
            continue
        videos.append((name, video.subset, video.duration, video.fps))
        for number, annotation in enumerate(video.annotations, 1):
            try:
                checked = _Annotation.model_validate(annotation, context={"duration": video.duration, "beyond": beyond})
                label, label_id = checked.label, checked.label_id
                if label_id is None:
                    numbered = False
                elif names.setdefault(label_id, label) != label:
                    raise ValueError(f"label_id {label_id} is of {label!r}, but of {names[label_id]!r} before")
                elif numbers.setdefault(label, label_id) != label_id:
                    raise ValueError(f"{label!r} has label_id {label_id}, but {numbers[label]} before")
                segments.append((name, *checked.segment, label))
            except ValueError as error:
                faults.append(f"video {name!r}, annotation {number}: {_cause(error)}")
    check_faults(file, faults)
    classes = sorted({label for *_, label in segments}, key=lambda label: (numbers[label] if numbered else 0, label))
    return Annotations(_table(videos, VIDEOS), _table(segments, SEGMENTS), tuple(classes))


def read_predictions(file: Path) -> pd.DataFrame:
    """A model's predictions, a row each: columns PREDICTIONS, in the order of the file. Raises ListError.

    A segment may end before it starts: then it overlaps with nothing.
    """
    rows, faults = [], []
    for video, predictions in _read_entries(file, "results").items():
        if not isinstance(predictions, list):
            faults.append(f"video {video!r}: a list of predictions is expected")
            continue
        for number, prediction in enumerate(predictions, 1):
            try:
                checked = _Prediction.model_validate(prediction)
                rows.append((video, *checked.segment, checked.label, checked.score))
            except ValidationError as error:
                faults.append(f"video {video!r}, prediction {number}: {_cause(error)}")
    check_faults(file, faults)
    return _table(rows, PREDICTIONS)


def write_predictions(file: Path, predictions: pd.DataFrame) -> None:
    """Write predictions (columns PREDICTIONS) as ActivityNet's evaluation reads them. Raises ListError for NaN and infinity.

    `read_predictions` returns the same numbers, to the last bit, with the rows of each video together.
    """
    table = predictions[PREDICTIONS].astype({name: float for name in PREDICTIONS if name not in TEXT})
    wrong = ~np.isfinite(table[["start", "end", "score"]]).all(axis=1).to_numpy()
    if wrong.any():
        number = int(wrong.argmax())
        raise ListError(
            f"cannot write {file}: prediction {number + 1} is not finite: {table.iloc[number].to_dict()}; check that the "
            "model's weights are finite"
        )
    results = defaultdict[str, list[dict[str, Any]]](list)
    for video, start, end, label, score in table.itertuples(index=False, name=None):
        results[str(video)].append({"segment": [start, end], "label": str(label), "score": score})
    write_text(Path(file), json.dumps({"version": "vmae_lab", "external_data": {}, "results": results}, allow_nan=False))


def segment_iou(segments: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of segments `(..., 2)`, starts and ends, broadcast: `(...)`; 0 if one does not end after it starts."""
    shared = (torch.minimum(segments[..., 1], others[..., 1]) - torch.maximum(segments[..., 0], others[..., 0])).clamp(min=0)
    union = (segments[..., 1] - segments[..., 0]) + (others[..., 1] - others[..., 0]) - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).eps)


def _read_entries(file: Path, key: str) -> dict[str, Any]:
    """The entries of a file by video."""
    try:
        content = json.loads(Path(file).read_bytes())  # bytes: json detects a byte-order mark and UTF-16
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise ListError(f"{file} is not JSON: {error}") from error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ListError(f'{file} has no "{key}" by video; ActivityNet\'s layout, {{"{key}": {{video: …}}}}, is expected')
    return entries


def _cause(error: ValueError) -> str:
    """The first thing that is wrong with an entry: the field, its value and what is expected."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    value = f"{first['input']!r}"[:100]
    if not first["loc"]:
        return f"{value} is not an object"
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if first["type"] == "missing" else f"{place} {value}: {first['msg']}"


def _table(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).astype({name: str if name in TEXT else float for name in columns})


# Dataset -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Untrimmed:
    """The videos of one split. `annotations`: theirs only, but with all classes; every video has its rate."""

    annotations: Annotations
    lists: SegmentLists
    split: Split

    @property
    def names(self) -> list[str]:
        return self.annotations.videos.video.tolist()

    def clips(self, processes: int = 1) -> VideoDataset:
        """The videos' files, in order. Raises ListError, which names missing and ambiguous ones."""
        folder = self.lists.folder
        if not folder.is_dir():
            raise ListError(f"videos.lists.videos: there is no folder {folder}")
        places = named_videos(folder)
        found = {name: [entry.name for entry in places.get(name, []) if not entry.is_dir()] for name in self.names}
        if wrong := [name if not files else " or ".join(files) for name, files in found.items() if len(files) != 1]:
            raise ListError(
                f"{len(wrong)} of {len(self.names)} videos of the {self.split} split are not in {folder}, or there twice: "
                f"{first_of(wrong)}"
            )
        table = pd.DataFrame({"path": [files[0] for files in found.values()]})
        table = table.assign(label=np.int64(-1), start=np.int64(0), total=np.int64(-1), line=np.int64(0))
        return clips_of({"untrimmed": (VideoList(folder, table, ()), FRAMES)}, self.lists.decoding, processes)

    def features(self) -> VideoFeatures:
        """The videos' pre-extracted features. Raises ListError."""
        features = self.lists.features
        if features is None:
            raise ListError("videos.lists.features: no folder of features is set, only one of videos")
        folder = place_of(features.folder, absolute(self.lists.root))
        if not folder.is_dir():
            raise ListError(f"videos.lists.features: there is no folder {folder}")
        files = {video: folder / features.pattern.replace("{video}", video) for video in self.names}
        return open_features(files, features.stride, features.frames)

    def check(self) -> None:
        """Raise ListError if videos or features are missing."""
        if self.lists.features is None:
            self.clips().decoders.close()
        else:
            self.features()

    def check_lengths(self, features: VideoFeatures) -> None:
        """Warn of features whose rate or stride differs from the settings: segments would be shifted without any error."""
        odd = []
        for video in self.annotations.videos.itertuples():
            windows = features.lengths[video.video]
            lasts = ((windows - 1) * features.stride + features.frames) / video.fps
            if abs(lasts - video.duration) > OFF * video.duration + 1:
                odd.append(f"{video.video} ({windows} windows are {lasts:.1f} s of {video.duration:.1f} s)")
        if odd:
            warnings.warn(
                f"features of {len(odd)} of {len(self.names)} videos are not as long as the annotations say; check that "
                f"stride, frames and rate are those of the extraction: {', '.join(odd[:5])}",
                stacklevel=2,
            )

    def check_rates(self, clips: VideoDataset) -> None:
        """Raise ListError for videos whose frame rate is not the annotated one, and warn of those without a constant rate."""
        timings = clips.decoders.map(DecoderProcess.time, map(clips.file, range(len(clips))))
        wrong, unsteady = [], []
        for video, timing in zip(self.annotations.videos.itertuples(), timings, strict=True):
            if isinstance(timing, VideoError) or not timing.rate:
                continue  # an error is raised when the video is read; without a rate the annotated one is used
            if not timing.steady:
                unsteady.append(f"{video.video} ({timing.off:.2g} s)")
            elif abs(timing.rate / video.fps - 1) > RATES:
                wrong.append(f"{video.video} has {timing.rate:.4g} frames a second, not {video.fps:.4g}")
        if wrong:
            raise ListError(f"{self.lists.annotations}: the fps of {len(wrong)} videos is wrong: {first_of(wrong, '; ')}")
        if unsteady:
            warnings.warn(
                f"{len(unsteady)} videos of the {self.split} split have no constant rate: their windows' times are off by up "
                f"to {first_of(unsteady)}; write them again with `ffmpeg -i IN -vf fps=30 OUT`",
                stacklevel=2,
            )


def open_untrimmed(settings: UntrimmedSettings, split: Split, processes: int = 1) -> Untrimmed:
    """The videos of a split and their annotations, checked. Embedded videos are written first if they do not exist.

    Raises ListError, StorageError.
    """
    given = settings.given
    if isinstance(given, SegmentLists):
        lists = given
    else:
        folder, splits = open_untrimmed_world(given, processes), {name: (name,) for name in SPLITS}
        lists = SegmentLists(root=str(folder), annotations="annotations.json", videos="videos", **splits)
    subsets, file = getattr(lists, split), lists.annotation_file
    if not subsets:
        raise ListError(f"videos.lists: there is no {split} split; set it to subsets of the annotations")
    annotations = read_annotations(file, lists.beyond).subset(*subsets)
    if annotations.segments.empty:
        raise ListError(f"{file}: no segment is annotated in the {split} split ({', '.join(subsets)})")
    videos = annotations.videos.assign(fps=annotations.videos.fps.fillna(np.nan if lists.rate is None else lists.rate))
    if without := videos.video[videos.fps.isna()].tolist():
        raise ListError(f"{file}: {len(without)} videos have no fps, {without[0]} the first; set videos.lists.rate")
    return Untrimmed(replace(annotations, videos=videos), lists, split)
