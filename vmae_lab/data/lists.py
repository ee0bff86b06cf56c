"""List files of the official code, as they are: which videos there are, and what they show."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vmae_lab.data.augment import channels_first
from vmae_lab.data.video import open_video, read_frames
from vmae_lab.files import fingerprint


class ListError(ValueError):
    """A list file that is missing or has bad lines: names the file, the lines and what is wrong."""


class ListSettings(BaseModel):
    """Own or real videos by list files, one video a line, separated by white space.

    `pretrain`: `path start_index total_frames` (VideoMAE V2's pre-training lists; -1 frames: a video file), labels not
    needed. `train`, `validation`, `test`: `path label`. Paths are relative to `root`. Frame folders are not read yet.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str = "."
    pretrain: str
    train: str
    validation: str
    test: str
    classes: int = Field(..., ge=2)

    def file(self, name: str) -> Path:
        return Path(self.root, getattr(self, name)).expanduser()

    @property
    def fingerprint(self) -> str:
        """Names the lists' content, or their names while the files are not there (a plan can be costed without them)."""
        names = ("pretrain", "train", "validation", "test")
        return fingerprint({n: self.file(n).read_text() if self.file(n).exists() else str(self.file(n)) for n in names})


@dataclass(frozen=True)
class ListedClips:
    """Videos of a list, decoded when they are asked for."""

    paths: list[Path]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def sources(self) -> list[str]:
        return ["lists"] * len(self.paths)

    def frame_count(self, index: int) -> int:
        return len(open_video(self.paths[index]))

    def video(self, index: int, window: range) -> Tensor:
        """The frames of a window of one video: uint8 `(C, T, H, W)`. Raises VideoError naming the file."""
        return channels_first(read_frames(self.paths[index], window))


def read_list(settings: ListSettings, name: str) -> ListedClips:
    """The videos of one list. Raises ListError naming every bad line (the first ten) before anything is decoded."""
    file = settings.file(name)
    if not file.is_file():
        raise ListError(f"data.lists.{name}: there is no list file {file}")
    paths, labels, bad = [], [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, label = _parse(line, name, settings.classes)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
            continue
        paths.append(Path(settings.root).expanduser() / path)
        labels.append(label)
    if bad or not paths:
        raise ListError(f"{file}: " + (f"{len(bad)} bad lines; " + "; ".join(bad[:10]) if bad else "the list is empty"))
    return ListedClips(paths, np.array(labels))


def _parse(line: str, name: str, classes: int) -> tuple[str, int]:
    words = line.split()
    if name == "pretrain":
        if len(words) != 3:
            raise ValueError(f"'path start_index total_frames' was expected, got {line!r}")
        if int(words[2]) >= 0:
            raise ValueError(
                f"{words[0]} is a frame folder ({words[2]} frames), which is not read yet; list video files with -1"
            )
        return words[0], -1
    if len(words) != 2:
        raise ValueError(f"'path label' was expected, got {line!r}")
    if not 0 <= int(words[1]) < classes:
        raise ValueError(f"label {words[1]} is outside 0..{classes - 1}")
    return words[0], int(words[1])
