"""Extraction of window features along untrimmed videos, for temporal detection and retrieval: one file per video, and tables.

Long videos are read in chunks. Finished videos are skipped.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor, nn

from vmae_lab.data.check import content_key
from vmae_lab.data.decoding import Decoded, VideoError, VideoFile
from vmae_lab.data.decoding.decoders import SEEKING
from vmae_lab.data.decoding.pool import DecoderProcess, Decoders
from vmae_lab.data.eval_clips import MissingVideos
from vmae_lab.data.frame_sampling import Stretch
from vmae_lab.data.transforms import centre_crop, squash
from vmae_lab.data.video_dataset import VideoDataset, to_tensor
from vmae_lab.data.video_features import SETTINGS, WINDOWS, VideoFeatures, extracted_files, open_features
from vmae_lab.data.video_lists.formats import write_list
from vmae_lab.models.checkpoints import load_weights, open_checkpoint, part_of, weights_digest
from vmae_lab.models.sizes import ClipShape, Positions
from vmae_lab.models.vit import NORM_EPS, VideoEncoder
from vmae_lab.utils.atomic_io import atomic_write, fingerprint, make_folder, read_json, readable, write_json
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.journal import append_to_journal, read_journal
from vmae_lab.utils.precision import Precision, autocast, uses_bf16
from vmae_lab.utils.progress import Progress
from vmae_lab.utils.settings import Settings
from vmae_lab.utils.shapes import Side, short_side_for

LOCK = ".features.lock"
JOURNAL, FAILURES = "features.jsonl", "failures.csv"
COLUMNS = ["path", "file", "window", "first_frame", "start_s", "end_s"]  # of windows.csv
LARGEST_SEEKING = 10**8  # pixels of all frames of a video that decord may read: 300 MB
LONGEST = 200  # bytes of a video name in a file name; file systems allow 255, including suffixes
Format = Literal["npy", "npz", "parquet"]


class FeatureError(UserError, ValueError):
    """A folder has features of another encoder or other settings."""


class FeatureSettings(Settings):
    """Windows of consecutive frames. Their length is the number of frames of the encoder."""

    stride: int = Field(4, ge=1, description="frames between the starts of windows: 4 for THUMOS14, 16 for FineAction")
    frame: Literal["squash", "centre"] = Field(
        "squash", description="squash the whole frame to the height and width of a clip, or crop its center"
    )
    scale_only: bool = Field(
        False, description="pixels / 255 without mean and standard deviation, as for the published features"
    )
    format: Format = "npy"


@dataclass(frozen=True)
class Extracted:
    """The result. `windows`: one row per window, as in windows.csv. `failed`: row -> error of an unreadable video."""

    windows: pd.DataFrame
    failed: dict[int, VideoError]
    videos: int

    def check(self) -> None:
        """Raise MissingVideos if some videos are unreadable."""
        if self.failed:
            raise MissingVideos(self.failed, self.videos, "Fix these videos, or remove them from the list or the annotations")


@dataclass(frozen=True)
class _Finished:
    """A line of the journal: the feature file of a video, and the numbers that give the times of its windows."""

    file: str
    windows: int
    frames: int
    fps: float

    def table(self, stride: int, window: int) -> pd.DataFrame:
        """Return `first_frame`, `start_s` and `end_s` of each window. Times are NaN if the frame rate is unknown."""
        first = np.arange(self.windows) * stride
        end = np.minimum(first + window, self.frames)
        rate = self.fps or np.nan
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
    layer: int | None = None,
    tokens: bool = False,
    precision: Precision = "auto",
) -> Extracted:
    """Write the features of every window: one file of float32 `(windows, D)` per video, `(windows, N, D)` with `tokens`.

    Features are those of `encode_clips`, in a precision: the mean token of the last block or of block `layer`, or all tokens,
    in the order of the token grid `(T', H', W')`. All tokens of a video are in memory until its file is written.

    `batch` windows are encoded at a time. At most `chunk` frames of a video are in memory (at least a window and a stride). A
    video that is shorter than a window has one window, with its last frame repeated. `folder` gets one file per video (npz and
    parquet also have the times of windows), windows.csv and failures.csv. Videos that an earlier call finished are skipped.
    Several processes may share the videos; a final call with all videos then completes the tables.

    Raises FeatureError if the folder has features of another encoder or other settings, or if there is no such layer;
    StorageError.
    """
    layer = checked_layer(encoder, layer)
    make_folder(folder)
    lock = FileLock(folder / LOCK)  # for the tables, which all processes write
    device = next(encoder.parameters()).device
    with lock:
        _check_settings(folder, encoder, norm, settings, layer, tokens, uses_bf16(precision, device))
    files = [clips.file(row) for row in range(len(clips))]
    keys = [content_key(file) for file in files]
    journal = read_journal(folder / JOURNAL)
    finished = {key: _Finished(**line) for key, line in journal.items() if (folder / line["file"]).is_file()}
    failed: dict[int, VideoError] = {}
    encoder.eval()

    def encode(windows: Tensor) -> Tensor:
        # The encoder does not normalize floating-point pixels.
        pixels = windows.to(device).float() / 255 if settings.scale_only else windows.to(device)
        return encode_clips(encoder, norm, pixels, layer, tokens, precision).cpu()

    bar = Progress(range(len(files)), unit="videos", desc="features", disable=not progress)
    with bar:
        for row in bar:
            file, key = files[row], keys[row]
            if key in finished:
                continue
            try:
                features, frames, fps = _encode_video(encode, clips.decoders, file, encoder.clip, settings, batch, chunk)
            except VideoError as error:
                failed[row] = error
                continue
            done = _Finished(_path(file, settings.format), len(features), frames, fps)
            _save(folder / done.file, settings.format, features, done.table(settings.stride, encoder.clip.frames))
            finished[key] = done
            append_to_journal(folder / JOURNAL, key, vars(done))
    names = {key: clips.name(row) for row, key in enumerate(keys)}  # repeated videos are in the table once
    windows = _window_table(names, finished, settings.stride, encoder.clip.frames)
    causes = pd.DataFrame([(readable(error.path), error.cause) for error in failed.values()], columns=["path", "cause"])
    with lock:
        write_list(folder / WINDOWS, windows)
        write_list(folder / FAILURES, causes)
    return Extracted(windows, failed, len(files))


def checked_layer(encoder: VideoEncoder, layer: int | None) -> int | None:
    """Return the number of an inner block, or None for the last block. Raises FeatureError if there is no such block."""
    if layer is None:
        return None
    if not 1 <= layer <= encoder.depth:
        raise FeatureError(f"there is no layer {layer}: the encoder has {counted(encoder.depth, 'block')}, numbered from 1")
    return None if layer == encoder.depth else layer


@torch.no_grad()
def encode_clips(
    encoder: VideoEncoder, norm: nn.Module | None, video: Tensor, layer: int | None = None, tokens: bool = False,
    precision: Precision = "auto",
) -> Tensor:  # fmt: skip
    """Return features of clips: `(B, C, T, H, W)` -> float32 `(B, D)`, the mean token, or with `tokens` all, `(B, N, D)`.

    `layer` is a block, from 1; None is the last block. `norm` (of a class head) is applied to the mean token, or to each
    token. It belongs to the last block: features of inner blocks are not normalized.
    """
    with autocast(precision, video.device):
        features = encoder(video, layer=layer).float()  # (B, N, D)
    if not tokens:
        features = features.mean(1)
    if norm and layer is None:
        features = norm(features)
    return features


def open_encoder(
    where: str | Path, frames: int | None, side: Side | None, device: str | torch.device, positions: Positions | None = None
) -> tuple[VideoEncoder, nn.Module | None]:  # fmt: skip
    """Load the encoder of a model, and the norm of its mean token.

    The norm is None if the encoder normalizes its tokens, as after pre-training. A model without any norm gets one without
    learned weights, with a warning. No class head is needed. If None, `frames` and `side` of clips are those of the model. At
    another shape, `positions` are interpolated by default, or recomputed. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(where)
    size = checkpoint.config.size
    state = part_of(checkpoint.state, "encoder.")
    normed = "trunk.norm.weight" in state
    clip = checkpoint.reshaped(frames, side, positions)
    encoder = VideoEncoder(size, clip, norm=normed)
    load_weights(encoder, state, str(where))
    if normed:
        return encoder.to(device), None
    norm = nn.LayerNorm(size.width, eps=NORM_EPS)
    weights = part_of(checkpoint.state, "head.fc_norm.")
    if weights:
        load_weights(norm, weights, f"{where}: fc_norm")
    else:
        warnings.warn(f"{where} has no fc_norm; its mean tokens are normalized without learned weights", stacklevel=2)
    return encoder.to(device), norm.to(device)


def open_extracted(folder: Path, videos: Sequence[str]) -> VideoFeatures:
    """Open features from `extract_features`. `videos`: names without suffix. Raises ListError."""
    files, stride, frames = extracted_files(folder)
    return open_features({video: files.get(video, folder / video) for video in videos}, stride, frames)


def _window_table(names: Mapping[str, str], finished: Mapping[str, _Finished], stride: int, frames: int) -> pd.DataFrame:
    """Return the content of windows.csv. `names`: key of each video -> its name."""
    tables = []
    for key, name in names.items():
        if key in finished:
            video = finished[key]
            table = video.table(stride, frames)
            tables.append(table.assign(path=name, file=video.file, window=range(video.windows)))
    return pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)


def _encode_video(
    encode: Callable[[Tensor], Tensor], decoders: Decoders, file: VideoFile, clip: ClipShape, settings: FeatureSettings,
    batch: int, chunk: int,
) -> tuple[np.ndarray, int, float]:  # fmt: skip
    """Return the features of a video (see `extract_features`), its number of frames and frame rate. Raises VideoError.

    Chunks overlap, so that every window is inside one of them. A chunk ends with the first window of the next chunk: if it is
    complete, there is a next chunk. The number of frames is not known before, because headers may be wrong.
    """
    window = clip.frames
    stride = settings.stride
    per_chunk = max(1, (chunk - window) // stride)  # windows, not counting the first one of the next chunk
    step = per_chunk * stride  # frames from chunk to chunk
    length = step + window
    features: list[Tensor] = []
    start = 0
    for decoded in _parts(decoders, file, step, length, short_side_for(clip.side)):
        video = to_tensor(decoded)  # (C, frames, H, W)
        frames = video.shape[1]
        complete = frames == length
        windows_here = per_chunk if complete else max(1, (frames - window) // stride + 1)
        if frames < window:
            video = torch.cat([video, video[:, -1:].expand(-1, window - frames, -1, -1)], dim=1)
        video = squash(video, clip.side) if settings.frame == "squash" else centre_crop(video, clip.side)
        windows = video.unfold(1, window, stride).permute(1, 0, 4, 2, 3)  # (windows, C, T, height, width)
        features += [encode(part) for part in windows[:windows_here].split(batch)]
        if not complete:
            break
        start += step
    return torch.cat(features).numpy(), start + frames, decoded.info.fps


def _parts(decoders: Decoders, file: VideoFile, step: int, length: int, side: int | None) -> Iterator[Decoded]:
    """Yield `length` frames from each multiple of `step` on. The last part is shorter. Raises VideoError.

    PyAV reads a video once from start to end. decord, which seeks, keeps many full-size frames in memory (1.3 GB of ten minutes
    of 320 x 240 pixels), so it reads only short videos of small frames.
    """
    if file.total < 0:
        (timing,) = decoders.map(DecoderProcess.time, [file])  # to read one frame, PyAV may have to count all by decoding
        if isinstance(timing, VideoError):
            raise timing
        info = timing.info
    else:
        info = decoders.read(file, Stretch(0, 1), side).info
    if info.decoder in ("pyav", SEEKING) or info.frames * info.width * info.height > LARGEST_SEEKING:
        kept = list[np.ndarray]()
        for chunk in decoders.stream(file, side):
            kept.extend(chunk.frames)
            while len(kept) >= length:
                yield Decoded(np.stack(kept[:length]), tuple(range(length)), chunk.info)
                del kept[:step]
        yield Decoded(np.stack(kept), tuple(range(len(kept))), chunk.info)
        return
    for start in count(0, step):
        part = decoders.read(file, Stretch(start, length), side)
        yield part
        if len(part.indices) < length:
            return


def _save(path: Path, form: Format, features: np.ndarray, windows: pd.DataFrame) -> None:
    make_folder(path.parent)
    with atomic_write(path) as temporary:
        if form == "parquet":
            nested = [list(window) if window.ndim == 2 else window for window in features]  # parquet takes no matrices
            windows.assign(features=nested).to_parquet(temporary, index=False, engine="pyarrow")
            return
        with open(temporary, "wb") as file:  # given a path, NumPy would append a suffix
            if form == "npy":
                np.save(file, features)
            else:
                np.savez(file, features=features, **{name: windows[name].to_numpy() for name in windows})


def _path(file: VideoFile, form: Format) -> str:
    """Return the feature file of a video: its path relative to the root, with suffix, so that videos never share a file.

    Long names are shortened and get a hash.
    """
    folder, name = os.path.split(os.path.relpath(file.path, file.root))
    part = f"@{file.offset}" if file.offset >= 0 else f"@{file.start}-{file.total}" if file.total >= 0 else ""
    if len(os.fsencode(name)) > LONGEST or readable(name) != name:  # tables need UTF-8
        name = f"{readable(name)[: LONGEST // 4]}~{fingerprint(name)}"
    return os.path.join(readable(folder), f"{name}{part}.{form}")


def _check_settings(
    folder: Path, encoder: VideoEncoder, norm: nn.Module | None, settings: FeatureSettings, layer: int | None, tokens: bool,
    bf16: bool,
) -> None:  # fmt: skip
    """Write a description of the encoder and the settings. Raises FeatureError if the folder has a different one."""
    weights = weights_digest(encoder.state_dict(), (norm or nn.Identity()).state_dict())
    made = {**settings.model_dump(), "weights": weights, "clip": encoder.clip.as_json}
    added = {"layer": layer, "tokens": tokens, "bf16": bf16}
    made |= {name: value for name, value in added.items() if value}  # older folders have none of them
    path = folder / SETTINGS
    if path.exists() and (before := read_json(path)) != made:
        names = [name for name in {**made, **before} if before.get(name) != made.get(name)]
        shown = {"stride": "window stride"}  # not the stride between the frames of a clip
        others = ", ".join(f"{shown.get(name, name)} {before.get(name)}, now {made.get(name)}" for name in names)
        raise FeatureError(
            f"{folder} has features of another encoder or other settings ({others}); use another folder, or delete it"
        )
    write_json(path, made)
