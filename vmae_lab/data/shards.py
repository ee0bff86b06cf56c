"""Packs the videos of a list into tar shards (WebDataset layout), so that millions of clips need few files.

A shard is an uncompressed tar of `<number>.<extension>` and `<number>.json` (label, class, source), which any WebDataset reader
can stream. The index videos.csv has the shard, offset and size of each video. With it, videos are read directly from the
shards, so the order of samples, determinism and resuming are the same as with single files.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.container import screen
from vmae_lab.data.video_dataset import clips_of
from vmae_lab.data.video_lists import ListError, VideoList
from vmae_lab.data.video_lists.formats import Faults, write_list
from vmae_lab.utils.atomic_io import atomic_write, make_folder, readable
from vmae_lab.utils.errors import first_of
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.seeding import numpy_generator

INDEX = "videos.csv"


def pack(videos: VideoList, folder: Path, shard_mib: int = 512, follow_links: bool = False, name: str = "") -> Path:
    """Write the videos, shuffled, into shards of about `shard_mib` MiB, and return the path of the index.

    `read_list` reads the index with `folder` as root. Existing shards are skipped. `name` is that of the list in messages, by
    default its root. Raises ListError for folders of frames and for missing files, VideoError for a shard of another list,
    StorageError.
    """
    if (videos.table.total >= 0).any():
        raise ListError(f"{videos.root}: folders of frames cannot be packed; convert them to video files")
    clips = clips_of({"packed": (videos, "")}, VideoSettings(follow_links=follow_links))
    files = [clips.file(index).path for index in range(len(clips))]
    sizes = _sizes([clips.file(index) for index in range(len(clips))], videos, follow_links, name or str(videos.root))
    make_folder(folder)
    parts = list(_parts(numpy_generator(0, "shards").permutation(len(clips)), sizes, shard_mib << 20))
    names = [f"shard-{number:06d}-of-{len(parts):06d}.tar" for number in range(len(parts))]
    if others := sorted({path.name for path in folder.glob("shard-*-of-*.tar")} - set(names)):
        raise VideoError(  # WebDataset readers stream every shard in a folder
            folder, f"it has shards of another list or shard size ({first_of(others)}); use another folder, or delete them"
        )
    listed, rows = list(zip(videos.table["path"], videos.table["label"].tolist(), strict=True)), []
    with Progress(total=len(clips), unit="videos", desc="packing") as bar:
        for path, part in zip(map(folder.joinpath, names), parts, strict=True):
            infos = {_stem(index): _info(*listed[index], videos.classes) for index in part}
            if not path.exists():
                with atomic_write(path) as temporary:
                    _write_shard(temporary, {_stem(index): files[index] for index in part}, infos)
            rows += _index_rows(path, infos, {_stem(index): int(sizes[index]) for index in part})
            bar.update(len(part))
    index = pd.DataFrame(rows)
    for name in ("frames", "bytes", "decoder"):  # the results of `data check` or `data transcode` stay valid
        if name in videos.table:
            index[name] = videos.table[name].iloc[[row for part in parts for row in part]].to_numpy()
    write_list(folder / INDEX, index, videos.classes)
    return folder / INDEX


def _sizes(files: Sequence[VideoFile], videos: VideoList, follow_links: bool, name: str) -> np.ndarray:
    """Return the sizes of files in bytes, int64 `(n,)`. Raises ListError with the first ten that cannot be opened."""
    sizes, causes = np.zeros(len(files), np.int64), dict[int, str]()
    for row, file in enumerate(files):
        try:
            sizes[row] = os.path.getsize(screen(file, follow_links))
        except VideoError as error:
            causes[row] = f"{file.path}: {error.cause}"
    faults = Faults(videos.table["line"].to_numpy())
    faults.add(np.isin(np.arange(len(files)), list(causes)), causes.__getitem__)
    faults.check(name, f"Set --root to the folder that the paths are relative to (now {videos.root})")
    return sizes


def _parts(order: Iterable[int], sizes: np.ndarray, limit: int) -> Iterator[list[int]]:
    """Yield the rows of each shard: at least one, and as many as the limit of bytes allows."""
    part, total = list[int](), 0
    for index in map(int, order):
        if part and total + sizes[index] > limit:
            yield part
            part, total = [], 0
        part.append(index)
        total += int(sizes[index])
    if part:
        yield part


def _stem(index: int) -> str:
    return f"{index:09d}"


def _info(path: str, label: int, classes: Sequence[str]) -> dict[str, Any]:
    """Return the content of a video's JSON member."""
    return {"source": str(path), "label": label} | ({"class": classes[label]} if label >= 0 else {})


def _write_shard(path: Path, files: dict[str, str], infos: dict[str, dict[str, Any]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for stem, source in files.items():
            with open(source, "rb") as file:
                tar.addfile(_member(f"{stem}{PurePath(source).suffix.lower()[:8]}", os.path.getsize(source)), file)
            text = json.dumps(infos[stem]).encode()
            tar.addfile(_member(f"{stem}.json", len(text)), io.BytesIO(text))


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Return a tar member without owner or time, so that equal content gives equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _index_rows(path: Path, infos: Mapping[str, dict[str, Any]], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the rows of a shard in the index. Raises VideoError if the shard does not match the list."""
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        stored = {PurePath(name).stem: member for name, member in members.items() if not name.endswith(".json")}
        written = {stem: tar.extractfile(f"{stem}.json") for stem in stored if f"{stem}.json" in members}
        found = {stem: json.load(file) for stem, file in written.items() if file}
    if found != infos or {stem: member.size for stem, member in stored.items()} != sizes:
        raise VideoError(
            path.parent,
            f"{path.name} was packed from another list, or videos have changed since; use another folder, or delete it",
        )
    return [
        {
            "path": path.name,
            "offset": stored[stem].offset_data,
            "size": stored[stem].size,
            **({"label": info["label"]} if "class" in info else {}),
            "source": readable(info["source"]),
        }
        for stem, info in infos.items()
    ]
