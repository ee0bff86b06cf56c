"""Features of windows along untrimmed videos, for what is built on them: temporal detection, retrieval (METHOD 5).

A file a video, and tables of what is where. Long videos are read in chunks; what is finished is not done again.
"""

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vmae_lab.data.check import content_key, read_journal
from vmae_lab.data.decoding import VideoError, VideoFile
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.frame_sampling import Stretch
from vmae_lab.data.transforms import centre_crop, squash
from vmae_lab.data.video_dataset import VideoDataset
from vmae_lab.data.video_features import VideoFeatures, open_features
from vmae_lab.data.video_lists.formats import write_list
from vmae_lab.models.checkpoints import CheckpointError, load_weights, open_checkpoint, part_of, weights_digest
from vmae_lab.models.vit import NORM_EPS, VideoEncoder
from vmae_lab.utils.atomic_io import atomic_write, fingerprint, make_folder, read_json, readable, storing_in, write_json
from vmae_lab.utils.progress import Progress

LOCK = ".features.lock"
SETTINGS, JOURNAL, WINDOWS, FAILURES = "features.json", "features.jsonl", "windows.csv", "failures.csv"
LONGEST = 200  # bytes of a video's name; file systems hold 255, and a place has more in it
Format = Literal["npy", "npz", "parquet"]


class FeatureError(ValueError):
    """A folder that holds features made in another way."""


class FeatureSettings(BaseModel):
    """Windows of consecutive frames, as many as the encoder takes, and how each becomes the encoder's square."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stride: int = Field(4, ge=1, description="frames from window to window: 4 for THUMOS14, 16 for FineAction")
    frame: Literal["squash", "centre"] = Field("squash", description="the whole frame made square, or its central square")
    scale_only: bool = Field(False, description="pixels / 255 without mean and deviation, as the published features were made")
    format: Format = "npy"


@dataclass(frozen=True)
class Extracted:
    """`windows`: a row a window, as in windows.csv. `failed`: the videos that could not be read, by row, and why."""

    windows: pd.DataFrame
    failed: dict[int, VideoError]
    videos: int

    def check(self) -> None:
        """Raise MissingVideos, naming them, where some could not be read."""
        if self.failed:
            raise MissingVideos(self.failed, self.videos, "Fix these videos, or remove them from the list or annotations")


@dataclass(frozen=True)
class _Seen:
    """What was seen of a finished video: of it the windows' places and times follow."""

    file: str
    windows: int
    frames: int
    fps: float


def extract_features(
    encoder: VideoEncoder,
    clips: VideoDataset,
    folder: Path,
    settings: FeatureSettings,
    norm: nn.Module | None = None,
    batch: int = 8,
    chunk: int = 1024,
    progress: bool = True,
) -> Extracted:
    """The mean token of every window of every video, through `norm` where one is given: a file of float32 `(windows, D)` each.

    `encoder` takes uint8 or normalised `(B, C, T, H, W)` of its `clip` shape to tokens `(B, N, D)`; `batch` windows go through
    it at a time, and `chunk` frames of a video are held at most, or a window and a stride where that is more. A video shorter
    than a window has one, its last frame shown again. In `folder`: files named after the videos (npy; npz and parquet hold
    the windows' places too), windows.csv, failures.csv. Videos that an earlier call has finished are not decoded again. Several
    processes may have parts of the videos at a time; a last call with all of them then makes the tables whole.

    Raises FeatureError where the folder's features are of another encoder or other settings, StorageError.
    """
    make_folder(folder)
    with _alone(folder):
        _claim(folder, encoder, norm, settings)
    files = [clips.file(row) for row in range(len(clips))]
    keys, places = [content_key(file) for file in files], [_place(file, settings.format) for file in files]
    journal = read_journal(folder / JOURNAL)
    seen = {key: _Seen(**line) for key, line in journal.items() if (folder / line["file"]).is_file()}
    failed: dict[int, VideoError] = {}
    encoder.eval()
    bar = Progress(range(len(files)), unit="videos", desc="features", disable=not progress)
    with storing_in(folder), open(folder / JOURNAL, "a", encoding="utf-8") as lines, bar:
        lines.write("\n" if journal else "")  # a killed call may have left half a line
        for row in bar:
            if keys[row] in seen:
                continue
            try:
                features, frames, fps = _features(encoder, norm, clips, files[row], settings, batch, chunk)
            except VideoError as error:
                failed[row] = error
                continue
            found = _Seen(places[row], len(features), frames, fps)
            _save(folder / places[row], settings.format, features, _windows(found, settings.stride, encoder.clip.frames))
            seen[keys[row]] = found
            lines.write(json.dumps({"key": keys[row], **vars(found)}) + "\n")
            lines.flush()
    names = {key: clips.name(row) for row, key in enumerate(keys)}  # what is listed twice is there once
    there = [(name, seen[key]) for key, name in names.items() if key in seen]
    with _alone(folder):
        return Extracted(_index(folder, there, failed, settings.stride, encoder.clip.frames), failed, len(files))


def _alone(folder: Path) -> FileLock:
    """For what processes that share videos out write in turn; files of features are each one's own, journals are added to."""
    return FileLock(folder / LOCK)


def open_encoder(
    where: str | Path, frames: int | None, side: int | None, device: str
) -> tuple[VideoEncoder, nn.Module | None]:  # fmt: skip
    """A model's encoder, and the norm of its mean token, where not (after pre-training) the tokens' own. No head is needed.

    `frames` and `side` of its clips, its own where None. A model without either norm gets one that only
    standardises, with a warning. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(where)
    size = checkpoint.config.size
    normed = checkpoint.config.model == "VideoMAE" and checkpoint.config.encoder_norm
    try:
        clip = checkpoint.config.reshaped(frames, side)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error
    encoder = VideoEncoder(size, clip, norm=normed)
    load_weights(encoder, part_of(checkpoint.state, "encoder."), str(where))
    if normed:
        return encoder.to(device), None
    norm, weights = nn.LayerNorm(size.width, eps=NORM_EPS), part_of(checkpoint.state, "head.fc_norm.")
    if weights:
        load_weights(norm, weights, f"{where}: fc_norm")
    else:
        warnings.warn(f"{where} has no fc_norm: its mean tokens are standardised without learned weights", stacklevel=2)
    return encoder.to(device), norm.to(device)


def open_extracted(folder: Path, videos: Sequence[str]) -> VideoFeatures:
    """What `extract_features` has left in a folder, of videos of these names (without ending). Raises ListError."""
    table = pd.read_csv(folder / WINDOWS, usecols=["path", "file"]).drop_duplicates()
    places = {Path(path).stem: folder / file for path, file in table.itertuples(index=False)}
    made = read_json(folder / SETTINGS)
    files = {video: places.get(video, folder / video) for video in videos}
    return open_features(files, made["stride"], made["clip"]["frames"])


@torch.no_grad()
def _features(
    encoder: VideoEncoder, norm: nn.Module | None, clips: VideoDataset, file: VideoFile, settings: FeatureSettings,
    batch: int, chunk: int,
) -> tuple[np.ndarray, int, float]:  # fmt: skip
    """Float32 `(windows, D)` of one video, its frames and their rate. Raises VideoError."""
    device, found = next(encoder.parameters()).device, []
    for part in _chunks(clips, file, encoder.clip.frames, encoder.clip.side, settings.stride, chunk):
        side = encoder.clip.side
        video = squash(part.video, side) if settings.frame == "squash" else centre_crop(part.video, side)
        windows = video.unfold(1, encoder.clip.frames, settings.stride).permute(1, 0, 4, 2, 3)
        for some in windows[: part.windows].split(batch):
            pixels = some.to(device)
            # The encoder takes floating pixels as they are, normalised or, here on request, not.
            tokens = encoder(pixels.float() / 255 if settings.scale_only else pixels).mean(1)
            found.append((norm(tokens) if norm else tokens).float().cpu())
    return torch.cat(found).numpy(), part.end, part.fps


@dataclass(frozen=True)
class _Chunk:
    """A part of a video, uint8 `(C, frames, H, W)`, the whole windows to take of it, where it ends in the video, its rate."""

    video: Tensor
    windows: int
    end: int
    fps: float


def _chunks(clips: VideoDataset, file: VideoFile, frames: int, side: int, stride: int, chunk: int) -> Iterator[_Chunk]:
    """A video in parts that overlap, such that every window is whole in one of them. Raises VideoError.

    Each request reaches to the end of the window after its last one: where it is answered in full, that window is there, and
    the next part begins with it. A video's length is not known before, and a file's header may promise too much.
    """
    windows = max(1, (chunk - frames) // stride)
    start, length = 0, windows * stride + frames
    while True:
        decoded = clips.decoders.read(file, Stretch(start, length), side)
        video, got = torch.from_numpy(decoded.frames).permute(3, 0, 1, 2), len(decoded.indices)
        whole = got == length
        if got < frames:
            video = torch.cat([video, video[:, -1:].expand(-1, frames - got, -1, -1)], dim=1)
        there = windows if whole else max(1, (got - frames) // stride + 1)
        yield _Chunk(video, there, start + got, decoded.info.fps)
        if not whole:
            return
        start += windows * stride


def _windows(seen: _Seen, stride: int, frames: int) -> pd.DataFrame:
    """Where and when a video's windows are: `first_frame`, and `start_s` and `end_s` by its mean rate, NaN without one."""
    first = np.arange(seen.windows) * stride
    rate = seen.fps or np.nan
    end = np.minimum(first + frames, seen.frames)
    return pd.DataFrame({"first_frame": first, "start_s": first / rate, "end_s": end / rate})


def _save(path: Path, form: Format, features: np.ndarray, windows: pd.DataFrame) -> None:
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        if form == "parquet":
            windows.assign(features=list(features)).to_parquet(temporary, index=False, engine="pyarrow")
            return
        with open(temporary, "wb") as file:  # numpy would put its own ending behind a name
            if form == "npy":
                np.save(file, features)
            else:
                np.savez(file, features=features, **{name: windows[name].to_numpy() for name in windows})


def _index(
    folder: Path, there: list[tuple[str, _Seen]], failed: dict[int, VideoError], stride: int, frames: int
) -> pd.DataFrame:  # fmt: skip
    """Write and return the table of windows, and write that of the videos that could not be read."""
    tables = [
        _windows(seen, stride, frames).assign(path=path, file=seen.file, window=range(seen.windows)) for path, seen in there
    ]
    columns = ["path", "file", "window", "first_frame", "start_s", "end_s"]
    windows = pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    causes = pd.DataFrame([(readable(error.path), error.cause) for error in failed.values()], columns=["path", "cause"])
    write_list(folder / WINDOWS, windows)
    write_list(folder / FAILURES, causes)
    return windows


def _place(file: VideoFile, form: Format) -> str:
    """Where a video's features are in the folder: its path from the root, which no list leads out of, ending and all, so that
    no two videos share a place. A name that leaves no room for what is added to it is shortened, and told apart by a hash."""
    folder, name = os.path.split(os.path.relpath(file.path, file.root))
    part = f"@{file.offset}" if file.offset >= 0 else f"@{file.start}-{file.total}" if file.total >= 0 else ""
    if len(os.fsencode(name)) > LONGEST or readable(name) != name:  # tables hold no name that is not UTF-8
        name = f"{readable(name)[: LONGEST // 4]}~{fingerprint(name)}"
    return os.path.join(readable(folder), f"{name}{part}.{form}")


def _claim(folder: Path, encoder: nn.Module, norm: nn.Module | None, settings: FeatureSettings) -> None:
    """Note in the folder how its features are made, or see that it is the same. Raises FeatureError."""
    weights = weights_digest(encoder.state_dict(), (norm or nn.Identity()).state_dict())
    made = {**settings.model_dump(), "weights": weights, "clip": vars(encoder.clip)}
    path = folder / SETTINGS
    if path.exists() and (before := read_json(path)) != made:
        others = ", ".join(f"{name} {before.get(name)}, now {made[name]}" for name in made if before.get(name) != made[name])
        raise FeatureError(f"{folder} holds features that were made otherwise ({others}): choose another folder, or delete it")
    write_json(path, made)
