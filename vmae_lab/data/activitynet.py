"""Untrimmed videos and when which action happens in them: the embedded ones, or annotations in ActivityNet's layout."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from vmae_lab.data.activitynet_files import Annotations, read_annotations
from vmae_lab.data.decoding import VideoError, VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.decoding.pool import DecoderProcess
from vmae_lab.data.motionworld.untrimmed import UntrimmedWorldSettings, open_untrimmed_world
from vmae_lab.data.video_dataset import VideoDataset, clips_of
from vmae_lab.data.video_features import FeatureFolder, VideoFeatures, open_features
from vmae_lab.data.video_lists import VideoList
from vmae_lab.data.video_lists.folders import named_videos
from vmae_lab.data.video_lists.formats import ListError, absolute, place_of
from vmae_lab.data.video_lists.splits import content_of
from vmae_lab.utils.atomic_io import fingerprint

Split = Literal["train", "validation", "test"]
RATES = 0.01  # part by which a video's rate may differ from what is annotated: 29.97 is written as 30
OFF = 0.1  # part of a video by which its features may be longer or shorter than its annotated duration, without a warning


class SegmentLists(BaseModel):
    """Annotations in ActivityNet's JSON layout, and where their videos are, or features of them that are there already."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    annotations: str = Field(description="JSON, relative to the root: durations, rates, segments, labels, subsets")
    videos: str | None = Field(None, description="folder of the videos, `<name>.<suffix>`; their features are extracted")
    features: FeatureFolder | None = None
    train: tuple[str, ...] = Field(description="subsets that are trained on, as the annotations call them")
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    rate: float | None = Field(None, gt=0, description="frames a second of all videos, where the annotations give none")
    beyond: Literal["refuse", "keep"] = Field("refuse", description="segments that end after their video")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        if (self.videos is None) == (self.features is None):
            raise ValueError("give one of videos (a folder of them) and features (a folder of what was extracted of them)")

    @property
    def fingerprint(self) -> str:
        """Names what the annotations say, and the features that are there already; places of what is not there yet.

        Of videos only those of a split decide something, by their features: `films`.
        """
        root = absolute(self.root)
        seen = self.features and self.features.content(root)
        return fingerprint([content_of(self.annotations, root), seen, self.train, self.validation, self.test])

    @property
    def folder(self) -> Path:
        """Where the videos are. Raises ListError where there are features in their place."""
        if self.videos is None:
            raise ListError("videos.lists.videos: no folder of videos is given, but features of them")
        return place_of(self.videos, absolute(self.root))

    def films(self, split: Split) -> str:
        """Names the videos of a split and their sizes, whatever is annotated in them; a place while they are not there."""
        place = place_of(self.annotations, absolute(self.root))
        if not place.is_file():
            return fingerprint([str(place), self.videos])
        names = read_annotations(place, "keep").subset(*getattr(self, split)).videos.video
        there = named_videos(self.folder) if self.folder.is_dir() else {}
        return fingerprint([(name, [one.stat().st_size for one in there.get(name, [])]) for name in sorted(names)])


class UntrimmedSettings(BaseModel):
    """The embedded untrimmed videos, or annotations with videos or features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motionworld: UntrimmedWorldSettings | None = None
    lists: SegmentLists | None = None

    def model_post_init(self, _context: object) -> None:
        if (self.motionworld is None) == (self.lists is None):
            raise ValueError(
                "give one of videos.motionworld (the embedded ones) and videos.lists (annotated videos or features)"
            )

    @property
    def given(self) -> UntrimmedWorldSettings | SegmentLists:
        """The one of the two that is given."""
        return next(one for one in (self.motionworld, self.lists) if one)

    @property
    def fingerprint(self) -> str:
        """Names the data's content."""
        return self.given.fingerprint

    def films(self, split: Split) -> str:
        """Names the videos of a split, and no more than decides the features of their windows."""
        given = self.given
        return given.films(split) if isinstance(given, SegmentLists) else given.fingerprint

    @property
    def extracted(self) -> bool:
        """Whether features are made by an encoder of ours, rather than there already."""
        return self.lists is None or self.lists.features is None


@dataclass(frozen=True)
class Untrimmed:
    """The videos of one split. `annotations`: of them alone, but with all classes; every video has its rate there."""

    annotations: Annotations
    lists: SegmentLists
    split: Split

    @property
    def names(self) -> list[str]:
        return self.annotations.videos.video.tolist()

    def clips(self, processes: int = 1) -> VideoDataset:
        """The videos' files, in order, to be read. Raises ListError naming those that are not there."""
        folder = self.lists.folder
        if not folder.is_dir():
            raise ListError(f"videos.lists.videos: there is no folder {folder}")
        places = named_videos(folder)
        there = {name: [one.name for one in places.get(name, []) if not one.is_dir()] for name in self.names}
        wrong = [name if not files else " or ".join(files) for name, files in there.items() if len(files) != 1]
        if wrong:
            raise ListError(
                f"{len(wrong)} of {len(self.names)} videos of the {self.split} split are not in {folder}, or there twice: "
                f"{', '.join(wrong[:10])}{' …' if len(wrong) > 10 else ''}"
            )
        table = pd.DataFrame({"path": [files[0] for files in there.values()]})
        table = table.assign(label=np.int64(-1), start=np.int64(0), total=np.int64(-1), line=np.int64(0))
        return clips_of({"untrimmed": (VideoList(folder, table, ()), FRAMES)}, self.lists.decoding, processes)

    def features(self) -> VideoFeatures:
        """The videos' features that were there already. Raises ListError."""
        where = self.lists.features
        if where is None:
            raise ListError("videos.lists.features: none are given, but a folder of videos")
        folder = place_of(where.folder, absolute(self.lists.root))
        if not folder.is_dir():
            raise ListError(f"videos.lists.features: there is no folder {folder}")
        files = {video: folder / where.pattern.replace("{video}", video) for video in self.names}
        return open_features(files, where.stride, where.frames)

    def check(self) -> None:
        """See that videos or features are there. Raises ListError."""
        if self.lists.features is None:
            self.clips().decoders.close()
        else:
            self.features()

    def check_lengths(self, features: VideoFeatures) -> None:
        """Warn of features at another rate or stride than is said: segments are in wrong places then, and nothing fails."""
        odd = []
        for video in self.annotations.videos.itertuples():
            lasts = ((features.lengths[video.video] - 1) * features.stride + features.frames) / video.fps
            if abs(lasts - video.duration) > OFF * video.duration + 1:
                odd.append(
                    f"{video.video} ({features.lengths[video.video]} windows are {lasts:.1f} s of {video.duration:.1f} s)"
                )
        if odd:
            warnings.warn(
                f"features of {len(odd)} of {len(self.names)} videos are not as long as the annotations say; see that stride, "
                f"frames and rate are those they were made with: {', '.join(odd[:5])}",
                stacklevel=2,
            )

    def check_rates(self, clips: VideoDataset) -> None:
        """Refuse videos of another rate than is annotated, and warn of such as have none that is steady. Raises ListError."""
        seen = clips.decoders.map(DecoderProcess.time, map(clips.file, range(len(clips))))
        wrong, unsteady = [], []
        for video, timing in zip(self.annotations.videos.itertuples(), seen, strict=True):
            if isinstance(timing, VideoError) or not timing.rate:
                continue  # told when it is read; without a rate the annotated one stands
            if not timing.steady:
                unsteady.append(f"{video.video} ({timing.off:.2g} s)")
            elif abs(timing.rate / video.fps - 1) > RATES:
                wrong.append(f"{video.video} has {timing.rate:.4g} frames a second, not {video.fps:.4g}")
        if wrong:
            raise ListError(f"{self.lists.annotations}: fps of {len(wrong)} videos is not theirs: {'; '.join(wrong[:10])}")
        if unsteady:
            warnings.warn(
                f"{len(unsteady)} videos of the {self.split} split have no steady rate: their windows' times are off by up "
                f"to {', '.join(unsteady[:10])}; write them again with `ffmpeg -i IN -vf fps=30 OUT`",
                stacklevel=2,
            )


def open_untrimmed(settings: UntrimmedSettings, split: Split, processes: int = 1) -> Untrimmed:
    """The videos of a split and their annotations, checked. The embedded ones are written where they are not there.

    Raises ListError, StorageError.
    """
    given = settings.given
    lists = given if isinstance(given, SegmentLists) else _as_lists(open_untrimmed_world(given, processes))
    subsets = getattr(lists, split)
    if not subsets:
        raise ListError(f"videos.lists: there is no {split} split; name the annotations' subsets of it")
    place = place_of(lists.annotations, absolute(lists.root))
    annotations = read_annotations(place, lists.beyond).subset(*subsets)
    if annotations.segments.empty:
        raise ListError(f"{place}: no segment is annotated in the {split} split ({', '.join(subsets)})")
    return Untrimmed(_with_rates(annotations, lists.rate, place), lists, split)


def _with_rates(annotations: Annotations, rate: float | None, place: Path) -> Annotations:
    videos = annotations.videos
    videos = videos.assign(fps=videos.fps.fillna(np.nan if rate is None else rate))
    without: Sequence[str] = videos.video[videos.fps.isna()].tolist()
    if without:
        raise ListError(f"{place}: {len(without)} videos have no fps, {without[0]} the first; set videos.lists.rate")
    return Annotations(videos, annotations.segments, annotations.classes)


def _as_lists(folder: Path) -> SegmentLists:
    """The embedded videos are annotated like any others."""
    splits = {split: (split,) for split in ("train", "validation", "test")}
    return SegmentLists(root=str(folder), annotations="annotations.json", videos="videos", **splits)
