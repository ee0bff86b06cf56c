"""Dataset of the videos of lists. They are decoded when they are read, in separate processes that may crash."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.decoders import Choose, Decoded
from vmae_lab.data.decoding.pool import Decoders
from vmae_lab.data.video_lists import ListSettings, VideoList, read_pretrain, read_split
from vmae_lab.utils.atomic_io import readable

ONE_SOURCE = "lists"
LOCATION = ("start", "total", "offset", "size", "frames", "bytes")  # whole numbers of a VideoFile
TEXT = np.dtypes.StringDType()


@dataclass(frozen=True)
class VideoDataset:
    """The videos of a split, of one or several sources, in order.

    They are stored as arrays of numbers and NumPy text. Python objects would gradually be copied into every forked data loader
    process.
    """

    paths: np.ndarray  # str, absolute
    locations: np.ndarray  # int64 (n, 6), columns LOCATION; -1 if unknown
    decoders_seen: np.ndarray  # str, from a check of the list; empty if unknown
    labels: np.ndarray
    codes: np.ndarray  # source of each video, as an index into the following tuples
    names: tuple[str, ...]
    roots: tuple[str, ...]
    patterns: tuple[str, ...]
    decoders: Decoders

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def sources(self) -> np.ndarray:
        return np.asarray(self.names)[self.codes]

    def file(self, index: int) -> VideoFile:
        """Return the location of a video."""
        code, location = self.codes[index], dict(zip(LOCATION, self.locations[index].tolist(), strict=True))
        decoder = str(self.decoders_seen[index])
        return VideoFile(
            _from_text(self.paths[index]), self.roots[code], pattern=self.patterns[code], decoder=decoder, **location
        )

    def subset(self, rows: Sequence[int]) -> "VideoDataset":
        chosen = np.asarray(rows, dtype=np.int64)
        columns = ("paths", "locations", "decoders_seen", "labels", "codes")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def name(self, index: int) -> str:
        """Return the file of a video, for messages and tables."""
        return readable(_from_text(self.paths[index]))

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        """Read the frames that `choose` picks: uint8 `(C, T, H, W)`. Raises VideoError with the file."""
        return to_tensor(self.decoders.read(self.file(index), choose, short_side))

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor | VideoError]:
        """Yield the frames of several videos, in order, or the VideoError of an unreadable one. Reads in parallel."""
        for read in self.decoders.read_all((self.file(index), choose, short_side) for index in rows):
            yield read if isinstance(read, VideoError) else to_tensor(read)


def listed_clips(settings: ListSettings, split: str, sources: Sequence[str] = (), processes: int = 1) -> VideoDataset:
    """Load a split (`pretrain`, `train`, `validation`, `test`) of some or all sources. Raises ListError."""
    if split == "pretrain":
        videos = {name: listed for name, listed in read_pretrain(settings).items() if not sources or name in sources}
        lists = {name: (listed, settings.pretrain_sources[name].frame_pattern) for name, listed in videos.items()}
    else:
        lists = {ONE_SOURCE: (read_split(settings, split, warn=False), settings.frame_pattern)}
    return clips_of(lists, settings.decoding, processes)


def clips_of(lists: Mapping[str, tuple[VideoList, str]], decoding: VideoSettings, processes: int = 1) -> VideoDataset:
    """Return the videos of lists. `lists`: source -> list and file name pattern of its frame folders."""
    videos, patterns = zip(*lists.values(), strict=True)
    tables = [listed.table for listed in videos]
    paths = [f"{listed.root}/{path}" if path[:1] != "/" else path for listed in videos for path in listed.table["path"]]
    return VideoDataset(
        np.array([path if path.isascii() else _to_text(path) for path in paths], dtype=TEXT),
        np.concatenate([table.reindex(columns=list(LOCATION), fill_value=-1).to_numpy(np.int64) for table in tables]),
        np.concatenate([table.get("decoder", pd.Series("", table.index)).to_numpy("U10") for table in tables]),
        np.concatenate([table["label"].to_numpy(np.int64) for table in tables]),
        np.repeat(np.arange(len(tables), dtype=np.int16), [len(table) for table in tables]),
        tuple(lists), tuple(str(listed.root) for listed in videos), patterns, Decoders(decoding, processes),
    )  # fmt: skip


def to_tensor(decoded: Decoded) -> Tensor:
    """Return decoded frames as uint8 `(C, T, H, W)`, colors innermost in memory, without a copy."""
    return torch.from_numpy(decoded.frames).permute(3, 0, 1, 2)


def _to_text(path: str) -> str:
    """Encode a path as NumPy text: a byte that is not UTF-8 (a surrogate in Python) becomes NUL and a letter."""
    return re.sub(r"[\udc80-\udcff]", lambda half: f"\0{chr(ord(half[0]) - 0xDC00)}", path)


def _from_text(text: str) -> str:
    """Return the path from NumPy text: the inverse of `_to_text`."""
    return re.sub("\0(.)", lambda pair: chr(ord(pair[1]) + 0xDC00), text) if "\0" in text else str(text)
