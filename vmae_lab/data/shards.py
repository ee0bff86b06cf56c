"""The videos of a list in tar shards (the WebDataset convention), so that millions of clips need no millions of files.

A shard is an uncompressed tar of `<number>.<extension>` and `<number>.json` (label, class, where it came from), which any
WebDataset reader streams. Beside them stands videos.csv, a list whose lines say shard, offset and size: with it a video is
read straight from its shard, so the order of samples, its determinism and its resuming are the same as for single files.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np
import pandas as pd

from vmae_lab.data.decoding import VideoError, VideoSettings
from vmae_lab.data.decoding.container import screen
from vmae_lab.data.video_dataset import VideoDataset, clips_of
from vmae_lab.data.video_lists import ListError, VideoList
from vmae_lab.data.video_lists.formats import write_list
from vmae_lab.utils.atomic_io import atomic_write, make_folder, readable
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.seeding import numpy_generator

INDEX = "videos.csv"


def pack(
    videos: VideoList, folder: Path, shard_mib: int = 512, seed: int = 0, follow_links: bool = False, progress: bool = True
) -> Path:  # fmt: skip
    """Write the videos, shuffled (a reader that streams shards then sees a mixture), into shards of about `shard_mib` MiB.

    Returns the index's path, which `read_list` takes with `folder` as root. A shard that stands is not written again.
    Raises ListError for folders of frames, VideoError for a file that is not there or a shard of another list, StorageError.
    """
    if (videos.table.total >= 0).any():
        raise ListError(f"{videos.root}: folders of frames are not packed: make video files of them, or list them as they are")
    make_folder(folder)
    clips = clips_of({"packed": (videos, "")}, VideoSettings(follow_links=follow_links))
    sizes = np.array([os.path.getsize(screen(clips.file(index), follow_links)) for index in range(len(clips))])
    order = numpy_generator(seed, "shards").permutation(len(clips))
    rows = []
    parts = list(_shards(order, sizes, shard_mib << 20))
    names = [f"shard-{number:06d}-of-{len(parts):06d}.tar" for number in range(len(parts))]
    _check_alone(folder, names)
    with Progress(total=len(clips), unit="videos", desc="packing", disable=not progress) as bar:
        for path, part in zip(map(folder.joinpath, names), parts, strict=True):
            if not path.exists():
                with atomic_write(path) as temporary:
                    _write_shard(temporary, part, clips, videos)
            rows += _rows_of(path, part, clips, videos, sizes)
            bar.update(len(part))
    write_list(folder / INDEX, pd.DataFrame(rows), videos.classes)
    return folder / INDEX


def _check_alone(folder: Path, names: Sequence[str]) -> None:
    """Readers that stream a folder take every shard in it. Raises VideoError where some are not of this packing."""
    others = sorted({path.name for path in folder.glob("shard-*-of-*.tar")} - set(names))
    if others:
        raise VideoError(
            folder,
            f"{', '.join(others[:3])}: of another packing, of another list or size: choose another folder, or delete them",
        )


def _shards(order: Iterable[int], sizes: np.ndarray, limit: int) -> Iterator[list[int]]:
    """Rows of each shard: filled in order until the next would exceed the limit, one at least."""
    part, total = list[int](), 0
    for index in map(int, order):
        if part and total + sizes[index] > limit:
            yield part
            part, total = [], 0
        part.append(index)
        total += int(sizes[index])
    if part:
        yield part


def _write_shard(path: Path, part: Sequence[int], clips: VideoDataset, videos: VideoList) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in part:
            source = clips.file(index).path
            member = _member(f"{_stem(index)}{PurePath(source).suffix.lower()[:8]}", os.path.getsize(source))
            with open(source, "rb") as file:
                tar.addfile(member, file)
            text = json.dumps(_about(index, clips, videos), ensure_ascii=True).encode()
            tar.addfile(_member(f"{_stem(index)}.json", len(text)), io.BytesIO(text))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A member that depends on its content alone: no owner, no time."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _about(index: int, clips: VideoDataset, videos: VideoList) -> dict[str, object]:
    """What a shard says of a video beside its bytes."""
    label = int(clips.labels[index])
    named = {"class": videos.classes[label]} if label >= 0 else {}
    return {"source": str(videos.table["path"].iloc[index]), "label": label, **named}


def _rows_of(
    path: Path, part: Sequence[int], clips: VideoDataset, videos: VideoList, sizes: np.ndarray
) -> list[dict[str, object]]:  # fmt: skip
    """Lines of the index, from the shard as it stands. Raises VideoError where it is not what this list would give."""
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        stored = {PurePath(name).stem: member for name, member in members.items() if not name.endswith(".json")}
        written = {stem: tar.extractfile(f"{stem}.json") for stem in stored if f"{stem}.json" in members}
        said = {stem: json.load(file) for stem, file in written.items() if file}
    wanted = {_stem(index): (_about(index, clips, videos), int(sizes[index])) for index in part}
    if {stem: (said.get(stem), member.size) for stem, member in stored.items()} != wanted:
        raise VideoError(
            path.parent,
            f"{path.name} was packed from another list, or videos have changed since: choose another folder, or delete this",
        )
    rows = []
    for index in part:
        member, about = stored[_stem(index)], said[_stem(index)]
        row = {"path": path.name, "offset": member.offset_data, "size": member.size}
        row |= {"label": about["label"]} if "class" in about else {}
        rows.append(row | {"source": readable(str(about["source"]))})
    return rows


def _stem(index: int) -> str:
    return f"{index:09d}"
