"""Videos of list files, decoded when they are asked for, in processes that may die without harm."""

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
PLACE = ("start", "total", "offset", "size", "frames", "bytes")  # of a VideoFile


@dataclass(frozen=True)
class VideoDataset:
    """The videos of one split, of one source or several, one after the other. Columns of numbers, so that a million of
    paths is no million of Python objects, which forked loader processes would copy by and by.
    """

    paths: np.ndarray  # str, absolute
    places: np.ndarray  # int64 (n, 6), as PLACE names them; -1: not told
    decoders_seen: np.ndarray  # str, as a check chose them; empty where there was none
    labels: np.ndarray
    codes: np.ndarray  # the source of each
    names: tuple[str, ...]  # of the sources
    roots: tuple[str, ...]
    patterns: tuple[str, ...]
    decoders: Decoders

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def sources(self) -> np.ndarray:
        return np.asarray(self.names)[self.codes]

    def file(self, index: int) -> VideoFile:
        """Where a video is."""
        code, place = self.codes[index], dict(zip(PLACE, self.places[index].tolist(), strict=True))
        return VideoFile(
            _unpacked(self.paths[index]),
            self.roots[code],
            pattern=self.patterns[code],
            decoder=str(self.decoders_seen[index]),
            **place,
        )

    def subset(self, rows: Sequence[int]) -> "VideoDataset":
        chosen = np.asarray(rows, dtype=np.int64)
        columns = {name: getattr(self, name)[chosen] for name in ("paths", "places", "decoders_seen", "labels", "codes")}
        return replace(self, **columns)

    def name(self, index: int) -> str:
        """The file, for messages and tables."""
        return readable(_unpacked(self.paths[index]))

    def video(self, index: int, choose: Choose, short_side: int | None = None) -> Tensor:
        """The frames that `choose` picks: uint8 `(C, T, H, W)`. Raises VideoError naming the file."""
        return _clip(self.decoders.read(self.file(index), choose, short_side))

    def videos(self, rows: Sequence[int], choose: Choose, short_side: int | None = None) -> Iterator[Tensor | VideoError]:
        """The same of several videos, in order, read side by side; one that cannot be read gives its error."""
        for read in self.decoders.read_all((self.file(index), choose, short_side) for index in rows):
            yield read if isinstance(read, VideoError) else _clip(read)


def listed_clips(settings: ListSettings, split: str, sources: Sequence[str] = (), processes: int = 1) -> VideoDataset:
    """The videos of a split (`pretrain`, `train`, `validation`, `test`), of some sources or all. Raises ListError."""
    if split == "pretrain":
        videos = {name: one for name, one in read_pretrain(settings).items() if not sources or name in sources}
        lists = {name: (one, settings.pretrain_sources[name].frame_pattern) for name, one in videos.items()}
    else:
        lists = {ONE_SOURCE: (read_split(settings, split, warn=False), settings.frame_pattern)}
    return clips_of(lists, settings.decoding, processes)


def clips_of(lists: Mapping[str, tuple[VideoList, str]], decoding: VideoSettings, processes: int = 1) -> VideoDataset:
    """The videos of lists, by the names of their sources; each with how pictures in folders are named."""
    videos, patterns = zip(*lists.values(), strict=True)
    return VideoDataset(
        np.concatenate([_absolute(one) for one in videos]),
        np.concatenate([_places(one.table) for one in videos]),
        np.concatenate([_decoders_seen(one.table) for one in videos]),
        np.concatenate([one.table["label"].to_numpy(np.int64) for one in videos]),
        np.repeat(np.arange(len(videos), dtype=np.int16), [len(one) for one in videos]),
        tuple(lists), tuple(str(one.root) for one in videos), patterns, Decoders(decoding, processes),
    )  # fmt: skip


def _clip(decoded: Decoded) -> Tensor:
    """uint8 `(C, T, H, W)` over the decoded memory, colours innermost: what follows crops and resizes it."""
    return torch.from_numpy(decoded.frames).permute(3, 0, 1, 2)


def _absolute(videos: VideoList) -> np.ndarray:
    paths = [f"{videos.root}/{path}" if path[:1] != "/" else path for path in videos.table["path"]]
    return np.array([path if path.isascii() else _packed(path) for path in paths], dtype=_TEXT)


def _packed(path: str) -> str:
    """A path as numpy's text can hold it: a byte that is not UTF-8, which Python has as half a character, as NUL and a letter.

    No path has a NUL of its own.
    """
    return re.sub(r"[\udc80-\udcff]", lambda half: f"\0{chr(ord(half[0]) - 0xDC00)}", path)


def _unpacked(path: str) -> str:
    """The path that `_packed` was given."""
    return re.sub("\0(.)", lambda pair: chr(ord(pair[1]) + 0xDC00), path) if "\0" in path else str(path)


def _places(table: pd.DataFrame) -> np.ndarray:
    columns = [table[name] if name in table else pd.Series(-1, table.index) for name in PLACE]
    return np.stack([column.to_numpy(np.int64) for column in columns], axis=1)


def _decoders_seen(table: pd.DataFrame) -> np.ndarray:
    return table["decoder"].to_numpy("U10") if "decoder" in table else np.zeros(len(table), "U10")


_TEXT = np.dtypes.StringDType()
