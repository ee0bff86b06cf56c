"""Where clips come from: the embedded data set or list files, and what training and evaluation draw from."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vmae_lab.data.decoding import VideoError
from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.memmap_dataset import MemmapDataset, decoded_frames
from vmae_lab.data.motionworld import ACTIONS, MotionworldSettings, open_motionworld
from vmae_lab.data.transforms import SCALES
from vmae_lab.data.video_dataset import listed_clips
from vmae_lab.data.video_lists import ListSettings


class DataSettings(BaseModel):
    """The embedded data set or list files, and how clips are cut and kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motionworld: MotionworldSettings | None = None
    lists: ListSettings | None = None
    pretrain_sources: tuple[str, ...] = Field((), description="sources pre-trained on; all that are written where empty")
    pretrain_limits: dict[str, int] = Field({}, description="clips per action to pre-train on, by source; all where left out")
    mixing: float = Field(
        1.0, ge=0, le=1, description="a source of n clips is drawn in proportion to n**mixing: 1 by size, 0 uniform"
    )
    resident_side: int = Field(40, ge=8, description="pixels at which decoded clips are kept in memory")
    stride: int = Field(1, ge=1, description="frames between two frames of a clip")
    crop_scales: tuple[float, ...] = Field(SCALES, min_length=1, description="parts of the short side")

    def model_post_init(self, _context: object) -> None:
        if (self.motionworld is None) == (self.lists is None):
            raise ValueError("give one of data.motionworld (the embedded data set) and data.lists (list files)")
        if problems := list(self._wrong_sources()):
            raise ValueError("\n".join(problems))

    def _wrong_sources(self) -> Iterator[str]:
        """What is wrong with the sources and the files' size, one line each."""
        if self.motionworld is None:
            if missing := set(self.pretrain_sources) - set(self.sources):
                names = ", ".join(self.sources)
                yield f"pretrain_sources {sorted(missing)} are not among data.lists.pretrain's sources, {names}"
            if self.pretrain_limits:
                yield "pretrain_limits are of the embedded data set: leave them out, and shorten the list files instead"
            return
        if missing := {*self.pretrain_sources, *self.pretrain_limits} - set(self.motionworld.sources):
            written = ", ".join(self.motionworld.sources)
            yield f"sources to pre-train on, {sorted(missing)}, are not among the written ones, {written}"
        for source, limit in self.pretrain_limits.items():
            if not 1 <= limit <= self.motionworld.train:
                yield f"pretrain_limits: {source} has 1 to {self.motionworld.train} clips an action; got {limit}"
        if self.resident_side > self.motionworld.side:
            yield f"resident_side {self.resident_side} is larger than the files' side {self.motionworld.side}"

    @property
    def given(self) -> MotionworldSettings | ListSettings:
        """The one of the two that is given."""
        return next(one for one in (self.motionworld, self.lists) if one)

    @property
    def fingerprint(self) -> str:
        """Names the data's content: equal fingerprints mean the same pixels."""
        return self.given.fingerprint

    @property
    def labelled(self) -> bool:
        """Whether there are labels to judge an encoder by."""
        return self.lists is None or self.lists.train is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self.lists.class_names if self.lists else tuple(ACTIONS)

    @property
    def classes(self) -> int:
        return self.lists.class_count if self.lists else len(ACTIONS)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names that `pretrain_sources` can pick from, and of the embedded data set an evaluation too."""
        given = self.given
        return tuple(given.pretrain_sources) if isinstance(given, ListSettings) else given.sources

    def stride_of(self, source: str) -> int:
        """Frames between two frames of a clip of one source to pre-train on."""
        listed = self.lists.pretrain_sources.get(source) if self.lists else None
        return (listed and listed.stride) or self.stride

    @property
    def weights(self) -> dict[str, float] | None:
        """Shares by source, where the lists give them."""
        given = {name: source.weight for name, source in self.lists.pretrain_sources.items()} if self.lists else {}
        chosen = {name: weight for name, weight in given.items() if weight and name in (self.pretrain_sources or given)}
        return chosen or None

    @property
    def pretrain_clips(self) -> int:
        """Clips to pre-train on, where that is known before they are read: of list files it is not, and 0 is told."""
        if self.motionworld is None:
            return 0
        pool = self.pretrain_sources or self.sources
        return self.classes * sum(self.pretrain_limits.get(source, self.motionworld.train) for source in pool)

    @property
    def seed(self) -> int:
        """What the draws of labelled clips start from."""
        return self.motionworld.seed if self.motionworld else 0


class Clips(Protocol):
    """Videos to draw clips from, in a fixed order; `labels` is int64 `(n,)`, `sources` a name a video."""

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def sources(self) -> Sequence[str] | np.ndarray: ...

    def __len__(self) -> int: ...

    def subset(self, rows: Sequence[int]) -> "Clips":
        """Some of the videos, in the order of `rows`."""
        ...

    def name(self, index: int) -> str:
        """The file, for messages."""
        ...

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        """The frames of one video that `choose` picks by its length, shrunk to a short side: uint8 `(C, T, H, W)`.

        Raises VideoError where it cannot be read.
        """
        ...

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor | VideoError]:
        """The same of several, in order; one that cannot be read gives its error."""
        ...


def load_clips(settings: DataSettings, split: str, sources: tuple[str, ...] = (), processes: int = 1) -> Clips:
    """The clips of a split (`pretrain`, `train`, `validation`, `test`), of some sources or all, in a fixed order.

    motionworld is written and decoded where that was not done; it pre-trains on its training split.
    """
    given = settings.given
    if isinstance(given, ListSettings):
        return listed_clips(given, split, sources if split == "pretrain" else (), processes)
    folder, records = open_motionworld(given, processes)
    everything = decoded_frames(folder, records, settings.resident_side, processes)
    limits = settings.pretrain_limits if split == "pretrain" else {}
    split, wanted = "train" if split == "pretrain" else split, sources or settings.sources
    taken, rows = Counter[tuple[str, str]](), []
    for row, record in enumerate(records):
        kind = (record.source, record.action)
        if record.split == split and record.source in wanted and taken[kind] < limits.get(record.source, len(records)):
            taken[kind] += 1
            rows.append(row)
    return MemmapDataset(everything, np.array(rows), [records[row] for row in rows])
