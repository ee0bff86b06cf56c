"""Data settings (embedded data set or list files), the protocol of a dataset, and how a split is loaded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.memmap_dataset import MemmapDataset, decoded_frames
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings, open_motionworld
from vmae_lab.data.motionworld.writer import WorldSettings
from vmae_lab.data.transforms import SCALES
from vmae_lab.data.video_dataset import listed_clips
from vmae_lab.data.video_lists import ListSettings
from vmae_lab.utils.settings import Settings

World = TypeVar("World", bound=WorldSettings)
Lists = TypeVar("Lists", bound=BaseModel)


class EmbeddedOrLists(Settings, Generic[World, Lists]):
    """Settings of an embedded data set (`motionworld`) or of lists of other videos (`lists`). Exactly one must be given."""

    section: ClassVar[str]  # name of these settings in the config

    motionworld: World | None = None
    lists: Lists | None = None

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if (self.motionworld is None) == (self.lists is None):
            raise ValueError(f"give one of {self.section}.motionworld (embedded data) and {self.section}.lists (other videos)")
        return self

    @property
    def given(self) -> World | Lists:
        """The embedded data set or the lists, whichever is set."""
        given = self.motionworld or self.lists
        assert given is not None
        return given

    @property
    def fingerprint(self) -> str:
        """Hash of the data. Equal fingerprints mean equal pixels and labels."""
        given: Any = self.given
        return given.fingerprint


class DataSettings(EmbeddedOrLists[MotionworldSettings, ListSettings]):
    """Labeled and unlabeled clips: sources, sampling, and the resolution that is kept in memory."""

    section = "data"

    pretrain_sources: tuple[str, ...] = Field((), description="sources to pre-train on; all if empty")
    pretrain_limits: dict[str, int] = Field({}, description="clips per action to pre-train on, by source; default all")
    mixing: float = Field(
        1.0, ge=0, le=1, description="a source of n clips is drawn in proportion to n**mixing: 1 by size, 0 uniform"
    )
    resident_side: int = Field(40, ge=8, description="height and width of decoded clips in memory, pixels")
    stride: int = Field(1, ge=1, description="a clip takes every stride-th frame")
    crop_scales: tuple[float, ...] = Field(SCALES, min_length=1, description="random crop sizes, in parts of the short side")

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        problems, world = [], self.motionworld
        if unknown := sorted({*self.pretrain_sources, *self.pretrain_limits} - set(self.sources)):
            setting = "data.motionworld.sources" if world else "data.lists.pretrain"
            problems.append(f"pretrain_sources or pretrain_limits: {unknown} are not in {setting}: {', '.join(self.sources)}")
        if world is None and self.pretrain_limits:
            problems.append(
                "pretrain_limits are only for the embedded data set; remove them, and shorten the list files instead"
            )
        if world:
            for source, limit in self.pretrain_limits.items():
                if not 1 <= limit <= world.train:
                    problems.append(f"pretrain_limits: {source} must be 1 to {world.train} clips per action; got {limit}")
            if self.resident_side > world.side:
                problems.append(f"resident_side {self.resident_side} is larger than motionworld.side {world.side}; reduce it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def labelled(self) -> bool:
        """Whether there are labels, which evaluation needs."""
        return self.lists is None or self.lists.train is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.lists.class_names if self.lists else tuple(ACTIONS)

    @property
    def classes(self) -> int:
        return self.lists.class_count if self.lists else len(ACTIONS)

    @property
    def sources(self) -> tuple[str, ...]:
        """Allowed names in `pretrain_sources` and, for the embedded data set, in `evaluate.sources`."""
        given = self.given
        return tuple(given.pretrain_sources) if isinstance(given, ListSettings) else given.sources

    def stride_of(self, source: str) -> int:
        """Return the stride of pre-training clips of a source."""
        listed = self.lists.pretrain_sources.get(source) if self.lists else None
        return (listed and listed.stride) or self.stride

    @property
    def weights(self) -> dict[str, float] | None:
        """Weights of the chosen sources in the mixture, or None if the lists have none."""
        listed = self.lists.pretrain_sources if self.lists else {}
        chosen = self.pretrain_sources or tuple(listed)
        return {name: source.weight for name, source in listed.items() if source.weight and name in chosen} or None

    @property
    def pretrain_clips(self) -> int:
        """Number of clips to pre-train on; 0 for list files, which are not read here."""
        if self.motionworld is None:
            return 0
        chosen = self.pretrain_sources or self.sources
        return self.classes * sum(self.pretrain_limits.get(source, self.motionworld.train) for source in chosen)

    @property
    def seed(self) -> int:
        """The seed that selects labeled clips."""
        return self.motionworld.seed if self.motionworld else 0


class Clips(Protocol):
    """Videos in a fixed order, from which clips are read.

    `labels`: int64 `(n,)`. `sources`: the source of each video.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def sources(self) -> Sequence[str] | np.ndarray: ...

    def __len__(self) -> int: ...

    def subset(self, rows: Sequence[int]) -> "Clips":
        """Return the videos in `rows`, in that order."""
        ...

    def name(self, index: int) -> str:
        """Return the file of a video, for messages."""
        ...

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        """Read frames of one video: uint8 `(C, T, H, W)`. A larger short side is reduced to `short_side`.

        `choose` maps the number of frames to frame indices. Raises VideoError.
        """
        ...

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor | VideoError]:
        """Yield the frames of several videos, in order, or the VideoError of an unreadable one."""
        ...


def load_clips(settings: DataSettings, split: str, sources: tuple[str, ...] = (), processes: int = 1) -> Clips:
    """Load a split (`pretrain`, `train`, `validation`, `test`) in a fixed order. Without `sources`, all sources are loaded.

    motionworld is written and decoded first if necessary. Its `pretrain` split is the training split without labels.
    """
    given = settings.given
    if isinstance(given, ListSettings):
        return listed_clips(given, split, sources if split == "pretrain" else (), processes)
    folder, records = open_motionworld(given, processes)
    frames = decoded_frames(folder, records, settings.resident_side, processes)
    limits = settings.pretrain_limits if split == "pretrain" else {}
    split, sources = "train" if split == "pretrain" else split, sources or settings.sources
    taken, rows = Counter[tuple[str, str]](), []
    for row, record in enumerate(records):
        kind = (record.source, record.action)
        if record.split == split and record.source in sources and taken[kind] < limits.get(record.source, len(records)):
            taken[kind] += 1
            rows.append(row)
    return MemmapDataset(frames, np.array(rows), [records[row] for row in rows])
