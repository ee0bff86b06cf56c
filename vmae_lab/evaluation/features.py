"""Features of windows along untrimmed videos, for temporal detection and retrieval: one file per video, and tables.

Long videos are read in chunks. Finished videos are not decoded again.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

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
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.progress import Progress

LOCK = ".features.lock"
SETTINGS, JOURNAL, WINDOWS, FAILURES = "features.json", "features.jsonl", "windows.csv", "failures.csv"
COLUMNS = ["path", "file", "window", "first_frame", "start_s", "end_s"]  # of windows.csv
LONGEST = 200  # bytes of a video's name; file systems allow 255, and a file's name has more in it
Format = Literal["npy", "npz", "parquet"]


class FeatureError(UserError, ValueError):
    """A folder that holds features of another encoder or other settings."""


class FeatureSettings(BaseModel):
    """Windows of consecutive frames, as many as the encoder takes, and how frames become square."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stride: int = Field(4, ge=1, description="frames from window to window: 4 for THUMOS14, 16 for FineAction")
    frame: Literal["squash", "centre"] = Field("squash", description="the whole frame made square, or its central square")
    scale_only: bool = Field(False, description="pixels / 255 without mean and deviation, as the published features were made")
    format: Format = "npy"


@dataclass(frozen=True)
class Extracted:
    """`windows`: one row per window, as in windows.csv. `failed`: the errors of unreadable videos, by row."""

    windows: pd.DataFrame
    failed: dict[int, VideoError]
    videos: int

    def check(self) -> None:
        """Raise MissingVideos, naming them, if some videos are unreadable."""
        if self.failed:
            raise MissingVideos(self.failed, self.videos, "Fix these videos, or remove them from the list or annotations")


@dataclass(frozen=True)
class _Finished:
    """A line of the journal: a video's file of features, and what the places and times of its windows follow from."""

    file: str
    windows: int
    frames: int
    fps: float

    def table(self, stride: int, window: int) -> pd.DataFrame:
        """`first_frame` of each window, and `start_s` and `end_s` by the video's mean rate, NaN if that is unknown."""
        first, rate = np.arange(self.windows) * stride, self.fps or np.nan
        end = np.minimum(first + window, self.frames)
        return pd.DataFrame({"first_frame": first, "start_s": first / rate, "end_s": end / rate})


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
    """Write the mean token of every window of every video, through `norm` if given: a file of float32 `(windows, D)` each.

    `batch` windows are encoded at a time, and at most `chunk` frames of a video are in memory, or a window and a stride if that
    is more. A video shorter than a window has one window, with its last frame repeated. `folder` gets files named after the
    videos (npz and parquet also hold the windows' places), windows.csv and failures.csv. Videos that an earlier call finished
    are not decoded again. Several processes may share the videos; a last call with all videos then completes the tables.

    Raises FeatureError if the folder's features are of another encoder or other settings, StorageError.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK)  # for files that all processes write; each writes its own files of features
    with lock:
        _check_settings(folder, encoder, norm, settings)
    files = [clips.file(row) for row in range(len(clips))]
    keys, paths = [content_key(file) for file in files], [_path(file, settings.format) for file in files]
    journal = read_journal(folder / JOURNAL)
    finished = {key: _Finished(**line) for key, line in journal.items() if (folder / line["file"]).is_file()}
    failed: dict[int, VideoError] = {}
    encoder.eval()
    bar = Progress(range(len(files)), unit="videos", desc="features", disable=not progress)
    with storing_in(folder), open(folder / JOURNAL, "a", encoding="utf-8") as lines, bar:
        lines.write("\n" if journal else "")  # a killed call may have left half a line
        for row in bar:
            if keys[row] in finished:
                continue
            try:
                features, frames, fps = _encode(encoder, norm, clips, files[row], settings, batch, chunk)
            except VideoError as error:
                failed[row] = error
                continue
            done = _Finished(paths[row], len(features), frames, fps)
            _save(folder / paths[row], settings.format, features, done.table(settings.stride, encoder.clip.frames))
            finished[keys[row]] = done
            lines.write(json.dumps({"key": keys[row], **vars(done)}) + "\n")
            lines.flush()
    names = {key: clips.name(row) for row, key in enumerate(keys)}  # videos that are listed twice are in the table once
    tables = [
        finished[key]
        .table(settings.stride, encoder.clip.frames)
        .assign(path=name, file=finished[key].file, window=range(finished[key].windows))
        for key, name in names.items()
        if key in finished
    ]
    windows = pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)
    causes = pd.DataFrame([(readable(error.path), error.cause) for error in failed.values()], columns=["path", "cause"])
    with lock:
        write_list(folder / WINDOWS, windows)
        write_list(folder / FAILURES, causes)
    return Extracted(windows, failed, len(files))


def open_encoder(
    where: str | Path, frames: int | None, side: int | None, device: str
) -> tuple[VideoEncoder, nn.Module | None]:  # fmt: skip
    """A model's encoder, and the norm of its mean token, or None if (after pre-training) the encoder norms its tokens.

    `frames` and `side` of its clips: the model's own if None. A model with neither norm gets one without learned weights, with
    a warning. No class head is needed. Raises CheckpointError.
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
    """The features in a folder of `extract_features`, of videos of these names (without suffix). Raises ListError."""
    table = pd.read_csv(folder / WINDOWS, usecols=["path", "file"]).drop_duplicates()
    files = {Path(path).stem: folder / file for path, file in table.itertuples(index=False)}
    made = read_json(folder / SETTINGS)
    return open_features({video: files.get(video, folder / video) for video in videos}, made["stride"], made["clip"]["frames"])


@torch.no_grad()
def _encode(
    encoder: VideoEncoder, norm: nn.Module | None, clips: VideoDataset, file: VideoFile, settings: FeatureSettings,
    batch: int, chunk: int,
) -> tuple[np.ndarray, int, float]:  # fmt: skip
    """Float32 `(windows, D)` of one video, its number of frames and their rate. Raises VideoError.

    Chunks overlap so that every window is within one of them. A chunk is read up to the end of the first window of the next
    one: if it is complete, there is a next one. The video's length is unknown before, since a file's header may be wrong.
    """
    window, side, stride, device = encoder.clip.frames, encoder.clip.side, settings.stride, next(encoder.parameters()).device
    per_chunk = max(1, (chunk - window) // stride)
    start, length, features = 0, per_chunk * stride + window, []
    while True:
        decoded = clips.decoders.read(file, Stretch(start, length), side)
        video, frames = torch.from_numpy(decoded.frames).permute(3, 0, 1, 2), len(decoded.indices)  # (C, frames, H, W)
        complete = frames == length
        count = per_chunk if complete else max(1, (frames - window) // stride + 1)
        if frames < window:
            video = torch.cat([video, video[:, -1:].expand(-1, window - frames, -1, -1)], dim=1)
        video = squash(video, side) if settings.frame == "squash" else centre_crop(video, side)
        windows = video.unfold(1, window, stride).permute(1, 0, 4, 2, 3)  # (windows, C, T, side, side)
        for part in windows[:count].split(batch):
            pixels = part.to(device)
            # Floating pixels are not normalised by the encoder.
            tokens = encoder(pixels.float() / 255 if settings.scale_only else pixels).mean(1)
            features.append((norm(tokens) if norm else tokens).float().cpu())
        if not complete:
            return torch.cat(features).numpy(), start + frames, decoded.info.fps
        start += per_chunk * stride


def _save(path: Path, form: Format, features: np.ndarray, windows: pd.DataFrame) -> None:
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        if form == "parquet":
            windows.assign(features=list(features)).to_parquet(temporary, index=False, engine="pyarrow")
            return
        with open(temporary, "wb") as file:  # NumPy would append a suffix to a name
            if form == "npy":
                np.save(file, features)
            else:
                np.savez(file, features=features, **{name: windows[name].to_numpy() for name in windows})


def _path(file: VideoFile, form: Format) -> str:
    """Where the folder has a video's features: its path from the list's root, suffix included, so that videos never share a
    file. A long name is shortened and made unique by a hash."""
    folder, name = os.path.split(os.path.relpath(file.path, file.root))
    part = f"@{file.offset}" if file.offset >= 0 else f"@{file.start}-{file.total}" if file.total >= 0 else ""
    if len(os.fsencode(name)) > LONGEST or readable(name) != name:  # tables hold no name that is not UTF-8
        name = f"{readable(name)[: LONGEST // 4]}~{fingerprint(name)}"
    return os.path.join(readable(folder), f"{name}{part}.{form}")


def _check_settings(folder: Path, encoder: VideoEncoder, norm: nn.Module | None, settings: FeatureSettings) -> None:
    """Write the encoder and the settings into the folder. Raises FeatureError if it has others."""
    weights = weights_digest(encoder.state_dict(), (norm or nn.Identity()).state_dict())
    made = {**settings.model_dump(), "weights": weights, "clip": vars(encoder.clip)}
    path = folder / SETTINGS
    if path.exists() and (before := read_json(path)) != made:
        others = ", ".join(f"{name} {before.get(name)}, now {made[name]}" for name in made if before.get(name) != made[name])
        raise FeatureError(
            f"{folder} holds features of another encoder or settings ({others}); choose another folder or delete it"
        )
    write_json(path, made)
