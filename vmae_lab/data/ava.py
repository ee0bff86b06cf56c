"""Key frames of videos, each with people's boxes and what they do: AVA-style lists, checked against the videos; clips."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vmae_lab.data.ava_files import CORNERS, KEY, read_excluded, read_ground_truth, read_label_map, read_person_boxes
from vmae_lab.data.decoding import Decoded, VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.decoding.inspection import Timing
from vmae_lab.data.decoding.pool import DecoderProcess, Decoders
from vmae_lab.data.frame_sampling import Around, Exactly
from vmae_lab.data.motionworld.scenes import SceneWorldSettings, open_scene_world
from vmae_lab.data.transforms import channels_first
from vmae_lab.data.video_lists.folders import named_videos
from vmae_lab.data.video_lists.formats import Faults, ListError, absolute, place_of
from vmae_lab.data.video_lists.splits import check_pattern, content_of
from vmae_lab.utils.atomic_io import fingerprint


class SplitFiles(BaseModel):
    """One split's files, csv without a header as AVA has them (`data.boxes`), relative to the root."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boxes: str = Field(description="who does what: video, timestamp, x1, y1, x2, y2, action_id, person_id")
    excluded: str | None = Field(None, description="key frames that are left out: video, timestamp")
    persons: str | None = Field(None, description="a person detector's boxes: video, timestamp, x1, y1, x2, y2, , score")


class SceneLists(BaseModel):
    """AVA-style lists and where their videos are. A video is a file `<name>.<suffix>` or a folder `<name>` of pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    videos: str = Field("videos", description="folder of the videos, relative to the root")
    train: SplitFiles
    validation: SplitFiles
    test: SplitFiles | None = None
    actions: str = Field(description="label map of all classes: pbtxt, or csv of numbers and names")
    evaluated: str | None = Field(None, description="label map of the classes that are evaluated; all where left out")
    first_second: float = Field(0.0, description="the timestamp of a video's first frame; 900 where AVA's were cut there")
    folder_rate: float = Field(30.0, gt=0, description="frames a second in folders of pictures")
    frame_pattern: str = Field(FRAMES, description="names of pictures; {video} stands for the video's name")
    first_frame: int = Field(1, ge=0, description="number of a folder's first picture")
    rate: float | None = Field(None, gt=0, description="frames a second that the stride counts in; each video's own if null")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern.replace("{video}", ""))

    @property
    def fingerprint(self) -> str:
        """Names the lists' content, or their names while they are not there."""
        splits = [split for split in (self.train, self.validation, self.test) if split]
        files = [name for split in splits for name in split.model_dump().values() if name]
        files += [name for name in (self.actions, self.evaluated) if name]
        return fingerprint([content_of(name, absolute(self.root)) for name in files])


class SceneSettings(BaseModel):
    """The embedded scenes, or AVA-style lists."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motionworld: SceneWorldSettings | None = None
    lists: SceneLists | None = None

    def model_post_init(self, _context: object) -> None:
        if (self.motionworld is None) == (self.lists is None):
            raise ValueError("give one of scenes.motionworld (the embedded data set) and scenes.lists (AVA-style lists)")

    def without_persons(self) -> "SceneSettings":
        """The same before a person detector has looked at them: lists may name files that are still to be written."""
        if self.lists is None:
            return self
        splits = {name: getattr(self.lists, name) for name in ("train", "validation", "test")}
        bare = {name: split and split.model_copy(update={"persons": None}) for name, split in splits.items()}
        return SceneSettings(lists=self.lists.model_copy(update=bare))

    @property
    def given(self) -> SceneWorldSettings | SceneLists:
        """The one of the two that is given."""
        return next(one for one in (self.motionworld, self.lists) if one)

    @property
    def fingerprint(self) -> str:
        """Names the data's content."""
        return self.given.fingerprint


@dataclass(frozen=True)
class Video:
    """One video of the lists: where it is, its frames a second, and how many there are."""

    file: VideoFile
    rate: float
    frames: int


@dataclass(eq=False)
class Scenes:
    """The key frames of one split. `keys`: a row each, columns KEY. Boxes are parts of width and height throughout."""

    keys: pd.DataFrame
    truth: pd.DataFrame  # as `read_ground_truth` gives it, without what is excluded
    persons: pd.DataFrame | None  # as `read_person_boxes` does
    actions: Mapping[int, str]
    evaluated: Mapping[int, str]
    videos: Mapping[str, Video]
    settings: SceneLists
    decoders: Decoders
    _kept: dict[tuple, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _rows(self) -> Mapping[tuple, np.ndarray]:
        return self.truth.groupby(KEY).indices

    @cached_property
    def labelled(self) -> list[int]:
        """The key frames of which somebody's actions are known."""
        return [index for index, key in enumerate(self.keys[KEY].itertuples(index=False, name=None)) if key in self._rows]

    def name(self, index: int) -> str:
        """A key frame, for messages."""
        return "{} at {:g} s".format(*self.keys.iloc[index][KEY])

    def labelled_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """Ground truth of a key frame: boxes, float `(n, 4)`, and what each does, bool `(n, classes)`, a person in one row.

        Classes are in the order of their numbers.
        """
        rows = self.truth.iloc[self._rows.get(tuple(self.keys.iloc[index][KEY]), [])]
        people = rows.groupby([*CORNERS, "person_id"], sort=False)
        classes = sorted(self.actions)
        labels = np.array([np.isin(classes, done.action_id) for _, done in people]).reshape(-1, len(classes))
        boxes = np.array([who[:4] for who, _ in people]).reshape(-1, 4)
        return torch.from_numpy(boxes).float(), torch.from_numpy(labels)

    def clip(self, index: int, frames: int, stride: int, short_side: int, keep: bool = False) -> Tensor:
        """Frames around a key frame, shrunk to a short side: uint8 `(C, T, H, W)`. `keep`: in memory. Raises VideoError."""
        wanted = (index, frames, stride, short_side)
        if wanted in self._kept:
            return channels_first(self._kept[wanted])
        return self._clip(self.decoders.read(*self._request(*wanted)), wanted, keep)

    def clips(
        self, rows: Sequence[int], frames: int, stride: int, short_side: int, keep: bool = False
    ) -> Iterator[Tensor | VideoError]:  # fmt: skip
        """The same of several key frames, in order, read ahead side by side; one that cannot be read gives its error."""
        wanted = [(row, frames, stride, short_side) for row in rows]
        missing = [one not in self._kept for one in wanted]
        read = self.decoders.read_all(self._request(*one) for one, new in zip(wanted, missing, strict=True) if new)
        for one, new in zip(wanted, missing, strict=True):
            found = next(read) if new else channels_first(self._kept[one])
            yield self._clip(found, one, keep) if isinstance(found, Decoded) else found

    def _request(self, index: int, frames: int, stride: int, short_side: int) -> tuple[VideoFile, Around, int]:
        video, timestamp = (self.videos[self.keys.video[index]], self.keys.timestamp[index])
        step = stride * video.rate / (self.settings.rate or video.rate)
        centre = (timestamp - self.settings.first_second) * video.rate
        return video.file, Around(centre, frames, step), short_side

    def _clip(self, decoded: Decoded, wanted: tuple, keep: bool) -> Tensor:
        if keep:
            self._kept[wanted] = decoded.frames
        return channels_first(decoded.frames)


def open_scenes(settings: SceneSettings, split: str, processes: int = 1) -> Scenes:
    """The key frames of a split (`train`, `validation`, `test`), every one checked against its video, which is opened for it.

    A video's frames are taken to be shown at a constant rate; where they are not, its lines are refused. The embedded scenes
    are written where they are not there. Raises ListError with file, line and cause; StorageError.
    """
    given = settings.given
    lists = given if isinstance(given, SceneLists) else _as_lists(open_scene_world(given, processes))
    files = getattr(lists, split)
    if files is None:
        raise ListError(f"scenes.lists: there is no {split} split; give its files, or evaluate on validation")
    root = absolute(lists.root)
    actions = read_label_map(place_of(lists.actions, root))
    evaluated = _evaluated(place_of(lists.evaluated, root), actions, lists.actions) if lists.evaluated else actions
    truth = read_ground_truth(place_of(files.boxes, root), actions)
    persons = read_person_boxes(place_of(files.persons, root)) if files.persons else None
    excluded = read_excluded(place_of(files.excluded, root)) if files.excluded else truth[KEY].head(0)
    if truth.empty:
        raise ListError(f"{place_of(files.boxes, root)}: the list is empty")
    decoders = Decoders(lists.decoding, processes)
    named = dict.fromkeys([*truth.video, *([] if persons is None else persons.video)])
    videos = _open_videos(list(named), lists, root, decoders)
    for rows, name in ((truth, files.boxes), (persons, files.persons)):
        if rows is not None:
            _check_against_videos(rows, place_of(name, root), videos, lists, place_of(lists.videos, root))
    truth, persons = _without(truth, excluded), None if persons is None else _without(persons, excluded)
    if truth.empty:
        raise ListError(f"{place_of(files.excluded, root)} excludes all key frames of {place_of(files.boxes, root)}")
    keys = pd.concat([truth[KEY], *([] if persons is None else [persons[KEY]])]).drop_duplicates(ignore_index=True)
    there = {name: video for name, video in videos.items() if isinstance(video, Video)}
    return Scenes(keys, truth.reset_index(drop=True), persons, actions, evaluated, there, lists, decoders)


def _as_lists(folder: Path) -> SceneLists:
    """The embedded scenes are files like any others."""
    splits = {
        split: SplitFiles(boxes=f"{split}.csv", persons=f"{split}_persons.csv") for split in ("train", "validation", "test")
    }
    return SceneLists(root=str(folder), actions="actions.pbtxt", **splits)


def _evaluated(file: Path, actions: Mapping[int, str], name: str) -> Mapping[int, str]:
    """The actions that a label map names by number. Raises ListError where there is none of that number."""
    numbers = read_label_map(file)
    unknown = sorted(set(numbers) - set(actions))
    if unknown:
        raise ListError(f"{file}: scenes.lists.actions, {name}, has no action of number {', '.join(map(str, unknown))}")
    return {number: actions[number] for number in numbers}


def _open_videos(names: Sequence[str], lists: SceneLists, root: Path, decoders: Decoders) -> dict[str, Video | str]:
    """Each named video, or what is wrong with it. Files are looked through once here, so that no later read has to."""
    folder = place_of(lists.videos, root)
    if not folder.is_dir():
        raise ListError(f"scenes.lists.videos: there is no folder {folder}")
    places = named_videos(folder)
    found: dict[str, Video | str] = {}
    for name in names:
        there = [entry.path for entry in places.get(name, [])]
        if len(there) != 1:
            several = f"video '{name}' may be {' or '.join(there)}; leave one of them there"
            found[name] = several if there else f"there is no video '{name}' in {folder}"
    root = root if folder.is_relative_to(root) else folder
    files = {name: _file(name, places[name][0], lists, root) for name in names if name not in found}
    shown = dict(zip(files, decoders.read_all((file, Exactly((0,)), 16) for file in files.values()), strict=True))
    films = {
        name: replace(files[name], decoder=read.info.decoder, bytes=os.path.getsize(files[name].path))
        for name, read in shown.items()
        if isinstance(read, Decoded) and files[name].total < 0
    }
    timed = dict(zip(films, decoders.map(DecoderProcess.time, films.values()), strict=True))
    return found | {
        name: _opened(films.get(name, file), timed.get(name, shown[name]), lists) for name, file in files.items()
    }  # fmt: skip


def _file(name: str, entry: os.DirEntry, lists: SceneLists, root: Path) -> VideoFile:
    if not entry.is_dir():
        return VideoFile(entry.path, str(root))
    pattern = lists.frame_pattern.replace("{video}", name.replace("{", "{{").replace("}", "}}"))
    suffix = Path(lists.frame_pattern).suffix
    return VideoFile(
        entry.path, str(root), lists.first_frame, sum(_is_picture(one.name, suffix) for one in os.scandir(entry.path)), pattern
    )


def _is_picture(name: str, suffix: str) -> bool:
    """Whether a file is one of a folder's frames; macOS puts hidden files (`._name`) next to them on other file systems."""
    return name.endswith(suffix) and not name.startswith(".")


def _opened(file: VideoFile, seen: Decoded | Timing | VideoError, lists: SceneLists) -> Video | str:
    """A video that could be looked at, or what is wrong with it: a time means a frame only at a rate that is constant."""
    if isinstance(seen, VideoError):
        return f"the video cannot be read: {seen}"
    if isinstance(seen, Decoded):  # a folder of pictures
        return Video(file, lists.folder_rate, file.total)
    if seen.rate and seen.steady:
        return Video(replace(file, frames=seen.info.frames), seen.rate, seen.info.frames)
    wrong = f"its frames are up to {seen.off:.2g} s off a constant rate" if seen.rate else "it does not say its frames a second"
    return f"{file.path}: {wrong}; write it again at one, as with `ffmpeg -i IN -vf fps=30 OUT`"


def _check_against_videos(
    rows: pd.DataFrame, file: Path, videos: Mapping[str, Video | str], lists: SceneLists, folder: Path
) -> None:
    """Refuse lines whose video is not there or cannot be read, or does not last until their timestamp."""
    faults = Faults(np.array(rows.attrs["lines"], int))
    bad = rows.video.map(lambda name: isinstance(videos[name], str)).to_numpy(bool)
    faults.add(bad, lambda row: str(videos[rows.video[row]]))
    good = [video if isinstance(video, Video) else Video(VideoFile(""), 1.0, 0) for video in rows.video.map(videos)]
    frame = (rows.timestamp.to_numpy() - lists.first_second) * np.array([video.rate for video in good])
    frames = np.array([video.frames for video in good])
    beyond = (frame < 0) | (np.floor(frame + 0.5) >= frames)  # as `sampling.nearest` has it

    def tell(row: int) -> str:
        last = lists.first_second + frames[row] / good[row].rate
        return (
            f"timestamp {rows.timestamp[row]:g} is outside video '{rows.video[row]}' in {folder}, which lasts from "
            f"{lists.first_second:g} to {last:g} s ({frames[row]} frames at {good[row].rate:g} a second)"
        )

    faults.add(beyond & ~bad, tell)
    faults.check(str(file))


def _without(rows: pd.DataFrame, excluded: pd.DataFrame) -> pd.DataFrame:
    return rows[~pd.MultiIndex.from_frame(rows[KEY]).isin(pd.MultiIndex.from_frame(excluded[KEY]))]
