"""ActivityNet-style data: untrimmed videos with segments of actions. Settings, files and dataset.

Annotations are JSON, also of THUMOS14 (ActionFormer's version) and FineAction: `{"database": {video: {"subset", "duration",
"fps", "annotations": [{"segment": [start, end], "label", "label_id"}]}}}`. "fps" and "label_id" are optional. Predictions are
`{"results": {video: [{"segment": [start, end], "label", "score"}]}}`. Times are in seconds. Other keys are ignored.
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
from pydantic import BaseModel, Field, StrictInt, ValidationError, ValidationInfo, model_validator
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
from vmae_lab.data.video_lists.formats import ListError, absolute, check_faults, list_path
from vmae_lab.data.video_lists.splits import content_of
from vmae_lab.utils.atomic_io import fingerprint, write_text
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.settings import Settings

VIDEOS = ["video", "subset", "duration", "fps"]
SEGMENTS = ["video", "start", "end", "label"]
PREDICTIONS = [*SEGMENTS, "score"]
TEXT = ("video", "subset", "label")
# Seconds by which a segment may end after its video, because durations are rounded; 1e-9 allows for floating-point error.
SLACK = 0.05 + 1e-9
RATES = 0.01  # accepted relative difference between measured and annotated frame rate: 29.97 is often annotated as 30
OFF = 0.1  # accepted relative difference between the length of features and the annotated duration
Beyond = Literal["refuse", "keep"]

# Settings ------------------------------------------------------------------------------------------------------------


class SegmentLists(Settings):
    """Annotations in ActivityNet's JSON layout, with a folder of their videos or of pre-extracted features."""

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
            raise ValueError("set exactly one of videos (a folder of videos) and features (a folder of pre-extracted features)")

    @property
    def annotation_file(self) -> Path:
        return list_path(self.annotations, absolute(self.root))

    @property
    def folder(self) -> Path:
        """The folder of the videos. Raises ListError if pre-extracted features are used instead."""
        if self.videos is None:
            raise ListError("videos.lists.videos is not set: videos.lists has pre-extracted features only")
        return list_path(self.videos, absolute(self.root))

    @property
    def fingerprint(self) -> str:
        """Hash of the annotations and of pre-extracted features, or of their paths if they do not exist yet.

        Videos are not part of it: the stage that extracts features has them in its key, see `films`.
        """
        root = absolute(self.root)
        features = self.features and self.features.content(root)
        return fingerprint([content_of(self.annotations, root), features, self.train, self.validation, self.test])

    def films(self, split: Split) -> str:
        """Return a hash of the names and sizes of the videos of a split. It does not depend on segments and labels."""
        if not self.annotation_file.is_file():
            return fingerprint([str(self.annotation_file), self.videos])
        names = read_annotations(self.annotation_file, "keep").subset(*getattr(self, split)).videos.video
        files = named_videos(self.folder) if self.folder.is_dir() else {}
        return fingerprint([(name, [file.stat().st_size for file in files.get(name, [])]) for name in sorted(names)])


class UntrimmedSettings(EmbeddedOrLists[UntrimmedWorldSettings, SegmentLists]):
    """The embedded untrimmed videos, or annotations with a folder of videos or features."""

    section = "videos"

    def films(self, split: Split) -> str:
        """Return a hash of what determines the features of the videos of a split."""
        given = self.given
        return given.films(split) if isinstance(given, SegmentLists) else given.fingerprint

    @property
    def extracted(self) -> bool:
        """Whether features are extracted from videos, not read from a folder."""
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
                f"{what} {'starts' if start >= duration else 'ends'} after the end of the video ({duration:g} s); correct one "
                'of them, or set beyond="keep" to keep such segments as the official evaluation does'
            )
        return self


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotations in the order of the file.

    `videos`: columns VIDEOS, fps is NaN if the file has none. `segments`: columns SEGMENTS. `classes`: the names of all
    subsets, in the order of their numbers.
    """

    videos: pd.DataFrame
    segments: pd.DataFrame
    classes: tuple[str, ...]

    def subset(self, *names: str) -> "Annotations":
        """Return the annotations of some subsets, with the classes of all subsets. Letter case is ignored.

        Raises ListError for an unknown subset.
        """
        subsets = self.videos.subset.str.lower()
        if absent := [name for name in names if name.lower() not in set(subsets)]:
            known = ", ".join(sorted(set(self.videos.subset))) or "none"
            raise ListError(f"no video is in the subset {', '.join(map(repr, absent))}; subsets of the annotations: {known}")
        videos = self.videos[subsets.isin([name.lower() for name in names])]
        segments = self.segments[self.segments.video.isin(videos.video)]
        return Annotations(videos.reset_index(drop=True), segments.reset_index(drop=True), self.classes)


def read_annotations(file: Path, beyond: Beyond = "refuse") -> Annotations:
    """Read an annotation file. A video without annotations is background.

    Classes are in the order of `label_id` (gaps are allowed) if every annotation has one, otherwise in alphabetical order.

    By default, a segment that starts after the end of its video, or ends more than 0.05 s after it, is an error. With
    `beyond="keep"` it is kept, as in the official evaluations, although no prediction can match it. Results on THUMOS14 compare
    with published ones only then: video_test_0000270 alone has 22 such segments.

    Raises ListError with the malformed videos and annotations (counted from 1).
    """
    if beyond not in ("refuse", "keep"):
        raise ValueError(f"beyond is {beyond!r}; expected 'refuse' or 'keep'")
    videos, segments, faults = [], [], []
    names, numbers, numbered = dict[int, str](), dict[str, int](), True  # classes by number and by name
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
                    raise ValueError(f"label_id {label_id} is {label!r} here, but {names[label_id]!r} before")
                elif numbers.setdefault(label, label_id) != label_id:
                    raise ValueError(f"{label!r} has label_id {label_id} here, but {numbers[label]} before")
                segments.append((name, *checked.segment, label))
            except ValueError as error:
                faults.append(f"video {name!r}, annotation {number}: {_cause(error)}")
    check_faults(file, faults)
    classes = sorted({label for *_, label in segments}, key=lambda label: (numbers[label] if numbered else 0, label))
    return Annotations(_table(videos, VIDEOS), _table(segments, SEGMENTS), tuple(classes))


def read_predictions(file: Path) -> pd.DataFrame:
    """Read predictions of a model, one per row, in the order of the file: columns PREDICTIONS. Raises ListError.

    A segment may end before it starts; it then overlaps with nothing.
    """
    rows, faults = [], []
    for video, predictions in _read_entries(file, "results").items():
        if not isinstance(predictions, list):
            faults.append(f"video {video!r}: expected a list of predictions")
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
    """Write predictions (columns PREDICTIONS) in ActivityNet's format. Raises ListError for NaN and infinity.

    `read_predictions` returns the same numbers, bit for bit, grouped by video.
    """
    table = predictions[PREDICTIONS].astype({name: float for name in PREDICTIONS if name not in TEXT})
    wrong = ~np.isfinite(table[["start", "end", "score"]]).all(axis=1).to_numpy()
    if wrong.any():
        number = int(wrong.argmax())
        raise ListError(
            f"cannot write {file}: prediction {number + 1} is not finite: {table.iloc[number].to_dict()}; check whether the "
            "weights of the model are finite"
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
    """Read the entries of a JSON file by video. Raises ListError."""
    try:
        content = json.loads(Path(file).read_bytes())  # bytes: json detects a byte-order mark and UTF-16
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise ListError(f"{file} is not JSON: {error}") from error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise ListError(f'{file} has no "{key}" by video; expected ActivityNet\'s layout {{"{key}": {{video: …}}}}')
    return entries


def _cause(error: ValueError) -> str:
    """Return the first fault of an entry: the field, its value and the expected value."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    value = f"{first['input']!r}"[:100]
    if not first["loc"]:
        return f"{value} is not an object"
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if first["type"] == "missing" else f"{field} {value}: {first['msg']}"


def _table(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns).astype({name: str if name in TEXT else float for name in columns})


# Dataset -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Untrimmed:
    """The videos of a split.

    `annotations`: of this split, with the classes of all splits. Every video has a frame rate.
    """

    annotations: Annotations
    lists: SegmentLists
    split: Split

    @property
    def names(self) -> list[str]:
        return self.annotations.videos.video.tolist()

    def clips(self, processes: int = 1) -> VideoDataset:
        """Return the video files, in order. Raises ListError with missing and ambiguous ones."""
        folder = self.lists.folder
        if not folder.is_dir():
            raise ListError(f"videos.lists.videos: there is no folder {folder}")
        candidates = named_videos(folder)
        found = {name: [entry.name for entry in candidates.get(name, []) if not entry.is_dir()] for name in self.names}
        if wrong := [name if not files else " or ".join(files) for name, files in found.items() if len(files) != 1]:
            raise ListError(
                f"missing or ambiguous in {folder}: {len(wrong)} of {counted(len(self.names), 'video')} of the {self.split} "
                f"split: {first_of(wrong)}"
            )
        table = pd.DataFrame({"path": [files[0] for files in found.values()]})
        table = table.assign(label=np.int64(-1), start=np.int64(0), total=np.int64(-1), line=np.int64(0))
        return clips_of({"untrimmed": (VideoList(folder, table, ()), FRAMES)}, self.lists.decoding, processes)

    def features(self) -> VideoFeatures:
        """Open the pre-extracted features of the videos. Raises ListError."""
        features = self.lists.features
        if features is None:
            raise ListError("videos.lists.features is not set: videos.lists has videos only")
        folder = list_path(features.folder, absolute(self.lists.root))
        if not folder.is_dir():
            raise ListError(f"videos.lists.features: there is no folder {folder}")
        return open_features(features.files(folder, self.names), features.stride, features.frames)

    def check(self) -> None:
        """Raise ListError if videos or features are missing."""
        if self.lists.features is None:
            self.clips().decoders.close()
        else:
            self.features()

    def check_lengths(self, features: VideoFeatures) -> None:
        """Warn if features do not match the annotated durations: a wrong rate or stride would shift segments silently."""
        odd = []
        for video in self.annotations.videos.itertuples():
            windows = features.lengths[video.video]
            lasts = ((windows - 1) * features.stride + features.frames) / video.fps
            if abs(lasts - video.duration) > OFF * video.duration + 1:
                odd.append(f"{video.video} ({counted(windows, 'window')} for {lasts:.1f} s of {video.duration:.1f} s)")
        if odd:
            warnings.warn(
                f"features of {len(odd)} of {counted(len(self.names), 'video')} do not match the annotated duration; check "
                f"that stride, frames and rate are those of the extraction: {first_of(odd)}",
                stacklevel=2,
            )

    def check_rates(self, clips: VideoDataset) -> None:
        """Raise ListError if a frame rate differs from the annotated one. Warn of videos without a constant rate."""
        timings = clips.decoders.map(DecoderProcess.time, map(clips.file, range(len(clips))))
        wrong, unsteady = [], []
        for video, timing in zip(self.annotations.videos.itertuples(), timings, strict=True):
            if isinstance(timing, VideoError) or not timing.rate:
                continue  # reading an unreadable video raises its error; if a file has no rate, the annotated one is used
            if not timing.steady:
                unsteady.append(f"{video.video} ({timing.off:.2g} s)")
            elif abs(timing.rate / video.fps - 1) > RATES:
                wrong.append(f"{video.video} has {timing.rate:.4g} fps, not {video.fps:.4g}")
        if wrong:
            raise ListError(
                f"{self.lists.annotations}: the fps of {counted(len(wrong), 'video')} is wrong: {first_of(wrong, '; ')}"
            )
        if unsteady:
            warnings.warn(
                f"no constant frame rate in {counted(len(unsteady), 'video')} of the {self.split} split, so times of windows "
                f"are off by up to: {first_of(unsteady)}; convert with `ffmpeg -i IN -vf fps=30 OUT`",
                stacklevel=2,
            )


def open_untrimmed(settings: UntrimmedSettings, split: Split, processes: int = 1) -> Untrimmed:
    """Open the videos of a split with their annotations. Embedded videos are written first if they do not exist.

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
        raise ListError(f"videos.lists.{split}: there is no {split} split; set it to subsets of the annotations")
    annotations = read_annotations(file, lists.beyond).subset(*subsets)
    if annotations.segments.empty:
        raise ListError(f"{file}: the {split} split ({', '.join(subsets)}) has no segments")
    videos = annotations.videos.assign(fps=annotations.videos.fps.fillna(np.nan if lists.rate is None else lists.rate))
    if without := videos.video[videos.fps.isna()].tolist():
        raise ListError(f"{file}: no fps of {counted(len(without), 'video')}: {first_of(without)}; set videos.lists.rate")
    return Untrimmed(replace(annotations, videos=videos), lists, split)
