"""AVA-style data: key frames of videos with boxes of people and their actions. Settings, files and dataset.

The csv files have no header. Ground truth: `video, timestamp, x1, y1, x2, y2, action_id, person_id`. In detections, the last
column is `score`; in boxes of a person detector, the action is empty. Times are in seconds, corners are relative to the width
and height of the frame. Timestamps are rounded to microseconds, as in ActivityNet's script, so that they survive a round trip.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from vmae_lab.data.dataset import EmbeddedOrLists
from vmae_lab.data.decoding import Decoded, VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.container import FRAMES
from vmae_lab.data.decoding.inspection import Timing
from vmae_lab.data.decoding.pool import DecoderProcess, Decoders
from vmae_lab.data.frame_sampling import Around, Exactly, nearest
from vmae_lab.data.motionworld.scenes import SceneWorldSettings, open_scene_world
from vmae_lab.data.motionworld.writer import SPLITS
from vmae_lab.data.transforms import channels_first
from vmae_lab.data.video_lists.folders import named_videos
from vmae_lab.data.video_lists.formats import Faults, ListError, absolute, check_faults, list_path, whole_numbers
from vmae_lab.data.video_lists.splits import check_pattern, content_of
from vmae_lab.utils.atomic_io import atomic_write, fingerprint
from vmae_lab.utils.counts import counted
from vmae_lab.utils.settings import Settings

CORNERS = ["x1", "y1", "x2", "y2"]
COLUMNS = ["video", "timestamp", *CORNERS, "action_id"]
KEY = ["video", "timestamp"]
DIGITS = 6  # decimals of a timestamp
OVERSHOOT = 1e-3  # by which rounded numbers of a detector may be outside [0, 1]
# A token of a pbtxt: a comment, a quoted string, a word or number, or a single character.
TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[^\s{}<>:;,\[\]"'#]+|\S""")

# Settings ------------------------------------------------------------------------------------------------------------


class SplitFiles(Settings):
    """The csv files of a split, relative to the root."""

    boxes: str = Field(description="ground truth: video, timestamp, x1, y1, x2, y2, action_id, person_id")
    excluded: str | None = Field(None, description="key frames to leave out: video, timestamp")
    persons: str | None = Field(None, description="boxes of a person detector: video, timestamp, x1, y1, x2, y2, , score")


class SceneLists(Settings):
    """AVA-style lists and their videos. A video is a file `<name>.<suffix>` or a folder `<name>` of pictures."""

    root: str = "."
    videos: str = Field("videos", description="folder of the videos, relative to the root")
    train: SplitFiles
    validation: SplitFiles
    test: SplitFiles | None = None
    actions: str = Field(description="label map of all classes: pbtxt, or csv of numbers and names")
    evaluated: str | None = Field(None, description="label map of the classes to evaluate; default all")
    first_second: float = Field(0.0, description="timestamp of a video's first frame; 900 for AVA's videos cut at 900 s")
    folder_rate: float = Field(30.0, gt=0, description="frames per second in folders of pictures")
    frame_pattern: str = Field(FRAMES, description="names of pictures; {video} stands for the video's name")
    first_frame: int = Field(1, ge=0, description="number of a folder's first picture")
    rate: float | None = Field(None, gt=0, description="frames per second that the stride counts; each video's own if null")
    decoding: VideoSettings = VideoSettings()

    def model_post_init(self, _context: object) -> None:
        check_pattern(self.frame_pattern.replace("{video}", ""))

    @property
    def fingerprint(self) -> str:
        """Hash of the content of the lists, or of their paths if they do not exist yet."""
        splits = [getattr(self, split) for split in SPLITS]
        files = [name for split in splits if split for name in split.model_dump().values() if name]
        files += [name for name in (self.actions, self.evaluated) if name]
        return fingerprint([content_of(name, absolute(self.root)) for name in files])


class SceneSettings(EmbeddedOrLists[SceneWorldSettings, SceneLists]):
    """The embedded scenes, or AVA-style lists."""

    section = "scenes"


# Csv files -----------------------------------------------------------------------------------------------------------


def read_ground_truth(file: Path, actions: Collection[int] | None = None) -> pd.DataFrame:
    """Read the actions of people in key frames, one per row: COLUMNS and `person_id` (-1 if the file has none).

    Raises ListError with the malformed lines: a wrong number of columns, a box without area or outside [0, 1], or an action
    that is not in `actions`.
    """
    table, faults = _read_csv(file, [*COLUMNS, "person_id"], optional="person_id")
    _check_boxes(table, faults)
    if actions is not None:
        unknown = ~table.action_id.isin(list(actions)).to_numpy()
        faults.add(unknown, lambda row: f"action_id {table.action_id[row]} is not in the label map")
    faults.check(str(file))
    return table


def read_detections(file: Path) -> pd.DataFrame:
    """Read detections of a model, one per row: COLUMNS and `score`. Boxes are not checked. Raises ListError."""
    table, faults = _read_csv(file, [*COLUMNS, "score"])
    faults.check(str(file))
    return table


def write_detections(file: Path, detections: pd.DataFrame) -> None:
    """Write detections in AVA's format: COLUMNS and `score`, without header."""
    times = [f"{time:.{DIGITS}f}".rstrip("0").rstrip(".") for time in keyed(detections).timestamp]
    with atomic_write(file) as temporary:
        table = detections[[*COLUMNS, "score"]].assign(timestamp=times)
        table.to_csv(temporary, header=False, index=False, float_format="%.6f")


def write_person_boxes(file: Path, boxes: pd.DataFrame) -> None:
    """Write boxes of a person detector for `read_person_boxes`: detections with an empty action."""
    write_detections(file, boxes.assign(action_id=""))


def read_person_boxes(file: Path) -> pd.DataFrame:
    """Read boxes of a person detector: KEY, CORNERS and `score`. The action column is ignored.

    Numbers that are outside [0, 1] by at most 0.001 are clipped. Raises ListError.
    """
    table, faults = _read_csv(file, [*COLUMNS, "score"], ignored="action_id")
    unsure = (table.score < -OVERSHOOT) | (table.score > 1 + OVERSHOOT)
    faults.add(unsure.to_numpy(), lambda row: f"score {table.score[row]:g} is not between 0 and 1")
    _check_boxes(table, faults, OVERSHOOT)
    faults.check(str(file))
    return table.assign(**{name: table[name].clip(0, 1) for name in (*CORNERS, "score")})


def read_excluded(file: Path) -> pd.DataFrame:
    """Read the key frames to leave out: KEY. Raises ListError."""
    table, faults = _read_csv(file, KEY)
    faults.check(str(file))
    return table


def keyed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with timestamps rounded to microseconds, so that equal key frames compare equal."""
    return rows.assign(timestamp=rows.timestamp.astype(float).round(DIGITS) + 0.0)  # no -0


def _read_csv(file: Path, names: list[str], optional: str = "", ignored: str = "") -> tuple[pd.DataFrame, Faults]:
    """Read the rows of a file and their faults. Malformed numbers become 0, a missing `optional` number becomes -1.

    Blank lines at the end and lines that start with `#` are skipped. `attrs["lines"]` has the line of each row in the file.
    """
    text = _read_text(file).rstrip()
    lines = {number: line for number, line in enumerate(text.split("\n"), 1) if text and not line.startswith("#")}
    rows = [[cell.strip() for cell in line.split(",")] for line in lines.values()]
    counts = np.array([len(row) for row in rows], int)
    faults = Faults(np.array(list(lines), int))
    wrong = (counts > len(names)) | (counts < len(names) - bool(optional))
    faults.add(wrong, lambda row: f"{counted(counts[row], 'column')}; expected {len(names)}: {', '.join(names)}")
    cells = pd.DataFrame([(row + [""] * len(names))[: len(names)] for row in rows], columns=names, dtype=str)
    faults.add((cells.video == "").to_numpy(), lambda row: "the name of the video is empty")

    def numbers(name: str) -> np.ndarray:
        whole = name in ("action_id", "person_id")
        if whole:
            values, good = whole_numbers(cells[name])
        else:
            values = pd.to_numeric(cells[name], errors="coerce").to_numpy(float)
            good = np.isfinite(values)
        missing = ((cells[name] == "") & (name == optional)).to_numpy()
        kind = "whole" if whole else "finite"
        faults.add(~(good | missing), lambda row: f"{name} {cells[name][row]!r} is not a {kind} number")
        return np.where(good, values, np.where(missing, -1, 0)).astype(values.dtype)

    found = keyed(cells[["video"]].assign(**{name: numbers(name) for name in names[1:] if name != ignored}))
    found.attrs["lines"] = faults.lines.tolist()
    return found, faults


def _check_boxes(table: pd.DataFrame, faults: Faults, slack: float = 0.0) -> None:
    """Add the rows whose box is outside [0, 1] by more than `slack`, or has no area after clipping."""

    def box(row: int) -> str:
        return "box " + ", ".join(f"{name} {table[name][row]:g}" for name in CORNERS)

    corners = table[CORNERS].to_numpy()
    faults.add(((corners < -slack) | (corners > 1 + slack)).any(1), lambda row: f"{box(row)} is not inside [0, 1]")
    x1, y1, x2, y2 = corners.clip(0, 1).T
    faults.add((x2 <= x1) | (y2 <= y1), lambda row: f"{box(row)} has no area; expected x1 < x2 and y1 < y2")


def _read_text(file: Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ListError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


# Label maps ----------------------------------------------------------------------------------------------------------


def read_label_map(file: Path) -> dict[int, str]:
    """Read the names of actions by number. Raises ListError with the malformed lines.

    The file is a csv of numbers and names, or a pbtxt with blocks (at any depth) `item { name: "…" id: 1 }` or, as in AVA's
    list of all 80 actions, `label { name: "…" label_id: 1 … }`.
    """
    text, faults = _read_text(file), list[str]()
    entries = list(_pbtxt_entries(text, faults) if file.suffix == ".pbtxt" else _csv_entries(text, faults))
    lines = pd.DataFrame(entries, columns=["line", "number", "name"]).groupby("number").line.agg(list)
    faults += [
        f"several actions have the number {number}: lines {', '.join(map(str, repeated))}"
        for number, repeated in lines.items()
        if len(repeated) > 1
    ]
    check_faults(file, faults)
    if not entries:
        raise ListError(f"{file} has no actions")
    return {number: name for _, number, name in entries}


def _csv_entries(text: str, faults: list[str]) -> Iterator[tuple[int, int, str]]:
    """Yield the line, number and name of each row. The first row may be a header."""
    rows = [(number, line.split(",", 1)) for number, line in enumerate(text.split("\n"), 1) if line.strip() and line[0] != "#"]
    for row, (line, cells) in enumerate(rows):
        numbered = cells[0].strip().isdecimal()
        if numbered and len(cells) == 2:
            yield line, int(cells[0]), cells[1].strip().strip('"')
        elif numbered or row > 0:
            faults.append(f"line {line}: entry {row + 1} {','.join(cells).strip()!r} is not a number and a name")


def _pbtxt_entries(text: str, faults: list[str]) -> Iterator[tuple[int, int, str]]:
    """Yield the line, number and name of each block `item` or `label`."""
    blocks = list[tuple[str, int, dict[str, str]]]()  # open ones: name, line, fields
    before, line, seen, count = ("", ""), 1, 0, 0
    for match in TOKEN.finditer(text):
        token = match[0]
        line, seen = line + text.count("\n", seen, match.start()), match.start()
        if token.startswith("#"):
            continue
        if token in "{<":
            blocks.append((before[1] if before[1] != ":" else before[0], line, {}))
        elif token in "}>" and blocks:
            name, start, fields = blocks.pop()
            if name in ("item", "label"):
                count += 1
                number = fields.get("id") or fields.get("label_id", "")
                action = fields.get("name") or fields.get("display_name", "")
                if number.isdecimal() and action:
                    yield start, int(number), action
                else:
                    faults.append(f"line {start}: {name} {count} lacks an id or a name")
        elif token in ("}", ">", '"', "'"):
            faults.append(f"line {line}: unmatched {token}")
        elif before[1] == ":" and blocks:
            value = re.sub(r"\\(.)", r"\1", token[1:-1]) if token[0] in "\"'" else token
            blocks[-1][2].setdefault(before[0], value)
        before = (before[1], token)
    faults += [f"line {start}: {name or 'a block'} is not closed" for name, start, _ in blocks]


# Dataset -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """A video of the lists: its location, frame rate (frames per second) and number of frames."""

    file: VideoFile
    rate: float
    frames: int


@dataclass(eq=False)
class Scenes:
    """The key frames of a split. `keys` has one per row, columns KEY. Boxes are relative to width and height."""

    keys: pd.DataFrame
    truth: pd.DataFrame  # from `read_ground_truth`, without excluded key frames
    persons: pd.DataFrame | None  # from `read_person_boxes`, without excluded key frames
    actions: Mapping[int, str]
    evaluated: Mapping[int, str]
    videos: Mapping[str, Video]
    settings: SceneLists
    decoders: Decoders
    _kept: dict[tuple[int, int, int, int], np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _rows(self) -> Mapping[tuple, np.ndarray]:
        return self.truth.groupby(KEY).indices

    @cached_property
    def labelled(self) -> list[int]:
        """Indices of the key frames with ground truth."""
        return [index for index, key in enumerate(self.keys[KEY].itertuples(index=False, name=None)) if key in self._rows]

    def name(self, index: int) -> str:
        """Return video and time of a key frame, for messages."""
        return "{} at {:g} s".format(*self.keys.iloc[index][KEY])

    def labelled_boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the ground truth of a key frame: boxes of people, float `(n, 4)`, and their actions, bool `(n, classes)`.

        Classes are in the order of their numbers.
        """
        rows = self.truth.iloc[self._rows.get(tuple(self.keys.iloc[index][KEY]), [])]
        people = rows.groupby([*CORNERS, "person_id"], sort=False)
        classes = sorted(self.actions)
        labels = np.array([np.isin(classes, person.action_id) for _, person in people]).reshape(-1, len(classes))
        boxes = np.array([box_and_id[:4] for box_and_id, _ in people]).reshape(-1, 4)
        return torch.from_numpy(boxes).float(), torch.from_numpy(labels)

    def clip(self, index: int, frames: int, stride: int, short_side: int, keep: bool = False) -> Tensor:
        """Read the frames around a key frame: uint8 `(C, T, H, W)`. With `keep`, they stay in memory. Raises VideoError."""
        request = (index, frames, stride, short_side)
        if request in self._kept:
            return channels_first(self._kept[request])
        return self._tensor(self.decoders.read(*self._request(*request)), request, keep)

    def clips(
        self, rows: Sequence[int], frames: int, stride: int, short_side: int, keep: bool = False
    ) -> Iterator[Tensor | VideoError]:
        """Yield the clips of several key frames, in order, or the VideoError of an unreadable one. Reads in parallel."""
        requests = [(row, frames, stride, short_side) for row in rows]
        missing = [request not in self._kept for request in requests]
        read = self.decoders.read_all(self._request(*request) for request, new in zip(requests, missing, strict=True) if new)
        for request, new in zip(requests, missing, strict=True):
            found = next(read) if new else channels_first(self._kept[request])
            yield self._tensor(found, request, keep) if isinstance(found, Decoded) else found

    def _request(self, index: int, frames: int, stride: int, short_side: int) -> tuple[VideoFile, Around, int]:
        video, timestamp = self.videos[self.keys.video[index]], self.keys.timestamp[index]
        step = stride * video.rate / (self.settings.rate or video.rate)
        centre = (timestamp - self.settings.first_second) * video.rate
        return video.file, Around(centre, frames, step), short_side

    def _tensor(self, decoded: Decoded, request: tuple[int, int, int, int], keep: bool) -> Tensor:
        if keep:
            self._kept[request] = decoded.frames
        return channels_first(decoded.frames)


def open_scenes(settings: SceneSettings, split: str, processes: int = 1, with_persons: bool = True) -> Scenes:
    """Open the key frames of a split (`train`, `validation`, `test`). Every video is opened to check its timestamps.

    Without `with_persons`, the list of the person detector is not read, since it may not exist yet.

    Embedded scenes are written first if they do not exist. Raises ListError with file, line and cause, also for videos without
    a constant frame rate; StorageError.
    """
    given = settings.given
    if isinstance(given, SceneLists):
        lists = given
    else:
        splits = {name: SplitFiles(boxes=f"{name}.csv", persons=f"{name}_persons.csv") for name in SPLITS}
        lists = SceneLists(root=str(open_scene_world(given, processes)), actions="actions.pbtxt", **splits)
    files: SplitFiles | None = getattr(lists, split)
    if files is None:
        raise ListError(f"scenes.lists.{split}: there is no {split} split; set its files, or evaluate on validation")
    root = absolute(lists.root)
    actions = evaluated = read_label_map(list_path(lists.actions, root))
    if lists.evaluated:
        evaluated = read_label_map(list_path(lists.evaluated, root))
        if unknown := sorted(set(evaluated) - set(actions)):
            numbers = ", ".join(map(str, unknown))
            raise ListError(
                f"{list_path(lists.evaluated, root)}: scenes.lists.actions ({lists.actions}) has no action {numbers}"
            )
        evaluated = {number: actions[number] for number in evaluated}
    boxes_file = list_path(files.boxes, root)
    truth = read_ground_truth(boxes_file, actions)
    persons = read_person_boxes(list_path(files.persons, root)) if files.persons and with_persons else None
    excluded = read_excluded(list_path(files.excluded, root)) if files.excluded else truth[KEY].head(0)
    if truth.empty:
        raise ListError(f"{boxes_file}: the list is empty")
    decoders = Decoders(lists.decoding, processes)
    names = dict.fromkeys([*truth.video, *([] if persons is None else persons.video)])
    videos = _open_videos(list(names), lists, root, decoders)
    _check_against_videos(truth, boxes_file, videos, lists)
    if persons is not None:
        _check_against_videos(persons, list_path(str(files.persons), root), videos, lists)
    truth, persons = _without(truth, excluded), None if persons is None else _without(persons, excluded)
    if truth.empty:
        raise ListError(f"{list_path(str(files.excluded), root)} excludes all key frames of {boxes_file}")
    keys = pd.concat([truth[KEY], *([] if persons is None else [persons[KEY]])]).drop_duplicates(ignore_index=True)
    opened = {name: video for name, video in videos.items() if isinstance(video, Video)}
    return Scenes(keys, truth.reset_index(drop=True), persons, actions, evaluated, opened, lists, decoders)


def _without(rows: pd.DataFrame, excluded: pd.DataFrame) -> pd.DataFrame:
    return rows[~pd.MultiIndex.from_frame(rows[KEY]).isin(pd.MultiIndex.from_frame(excluded[KEY]))]


def _open_videos(names: Sequence[str], lists: SceneLists, root: Path, decoders: Decoders) -> dict[str, Video | str]:
    """Open videos by name: name -> video, or the fault as text. The stored decoder and size make later reads faster."""
    folder = list_path(lists.videos, root)
    if not folder.is_dir():
        raise ListError(f"scenes.lists.videos: there is no folder {folder}")
    candidates, inside = named_videos(folder), str(root if folder.is_relative_to(root) else folder)
    videos, files = dict[str, Video | str](), dict[str, VideoFile]()
    for name in names:
        entries = candidates.get(name, [])
        if len(entries) == 1:
            files[name] = _video_file(name, entries[0], lists, inside)
        elif entries:
            videos[name] = f"video '{name}' may be {' or '.join(entry.path for entry in entries)}; keep only one of them"
        else:
            videos[name] = f"there is no video '{name}' in {folder}"
    first_frames = decoders.read_all((file, Exactly((0,)), 16) for file in files.values())
    decoded = dict(zip(files, first_frames, strict=True))
    checked = {
        name: replace(files[name], decoder=frame.info.decoder, bytes=os.path.getsize(files[name].path))
        for name, frame in decoded.items()
        if isinstance(frame, Decoded) and files[name].total < 0
    }
    timings = dict(zip(checked, decoders.map(DecoderProcess.time, checked.values()), strict=True))
    return videos | {
        name: _opened(checked.get(name, file), timings.get(name, decoded[name]), lists) for name, file in files.items()
    }


def _video_file(name: str, entry: os.DirEntry, lists: SceneLists, root: str) -> VideoFile:
    if not entry.is_dir():
        return VideoFile(entry.path, root)
    pattern = lists.frame_pattern.replace("{video}", name.replace("{", "{{").replace("}", "}}"))
    suffix = Path(pattern).suffix
    # Hidden files (`._name`) do not count: macOS writes them next to the pictures on foreign file systems.
    count = sum(file.name.endswith(suffix) and not file.name.startswith(".") for file in os.scandir(entry.path))
    return VideoFile(entry.path, root, lists.first_frame, count, pattern)


def _opened(file: VideoFile, found: Decoded | Timing | VideoError, lists: SceneLists) -> Video | str:
    """Return the opened video, or its fault as text. Timestamps identify frames only at a constant frame rate."""
    if isinstance(found, VideoError):
        return f"the video cannot be read: {found}"
    if isinstance(found, Decoded):  # a folder of pictures
        return Video(file, lists.folder_rate, file.total)
    if found.rate and found.steady:
        return Video(replace(file, frames=found.info.frames), found.rate, found.info.frames)
    wrong = f"frames are up to {found.off:.2g} s off a constant frame rate" if found.rate else "it has no frame rate"
    return f"{file.path}: {wrong}; convert it to a constant rate: `ffmpeg -i IN -vf fps=30 OUT`"


def _check_against_videos(rows: pd.DataFrame, file: Path, videos: Mapping[str, Video | str], lists: SceneLists) -> None:
    """Raise ListError for rows whose video cannot be opened or does not contain the timestamp."""
    faults = Faults(np.array(rows.attrs["lines"], int))
    found = rows.video.map(videos).tolist()
    faults.add(np.array([isinstance(video, str) for video in found], bool), lambda row: str(found[row]))
    limits = [(video.rate, video.frames) if isinstance(video, Video) else (1.0, 0) for video in found]
    positions = [(time - lists.first_second) * rate for time, (rate, _) in zip(rows.timestamp, limits, strict=True)]

    def outside(row: int) -> str:
        (rate, frames), first, folder = limits[row], lists.first_second, list_path(lists.videos, absolute(lists.root))
        return (
            f"timestamp {rows.timestamp[row]:g} is outside video '{rows.video[row]}' in {folder}, which covers {first:g} "
            f"to {first + frames / rate:g} s ({frames} frames at {rate:g} fps)"
        )

    beyond = [at < 0 or nearest(at) >= frames for at, (_, frames) in zip(positions, limits, strict=True)]
    faults.add(np.array(beyond, bool), outside)
    faults.check(str(file))
