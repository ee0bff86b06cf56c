"""Predict the classes of single videos, or along long videos, with the views of the official test protocol.

    model = VideoClassifier.from_pretrained("runs/finetune-...")
    predict(model, "video.mp4").top(5)

These are functions, not methods of the models, because a model is a function of tensors and opens no files.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vmae_lab.data.decoding import VideoError, VideoFile, VideoSettings
from vmae_lab.data.decoding.container import URL, is_url
from vmae_lab.data.decoding.pool import Decoders
from vmae_lab.data.frame_sampling import Dense
from vmae_lab.data.video_dataset import VideoDataset, to_tensor
from vmae_lab.data.video_lists.formats import read_lines
from vmae_lab.evaluation.features import checked_layer, encode_clips
from vmae_lab.evaluation.multi_view import ViewSettings, cut_views, mean_probabilities
from vmae_lab.models.action_detector import ActionDetector
from vmae_lab.models.checkpoints import CheckpointError, load_weights, open_checkpoint
from vmae_lab.models.classifier import VideoClassifier
from vmae_lab.models.sizes import ClipShape, Positions
from vmae_lab.models.videomae import VideoMAE
from vmae_lab.utils.counts import counted
from vmae_lab.utils.errors import UserError
from vmae_lab.utils.shapes import Side, short_side_for

STRIDE = 4  # default for models without a stored stride: that of VideoMAE on Kinetics


class PredictionError(UserError, ValueError):
    """A requested prediction is impossible. The message names the file or option, and what to do."""


# ----------------------------------------------------------------------------------------------------------------------
# Model and names


def open_classifier(
    where: str | Path, frames: int | None = None, side: Side | None = None, positions: Positions | None = None
) -> VideoClassifier:  # fmt: skip
    """Open a trained classifier of any format that `open_checkpoint` reads, in evaluation mode.

    Unlike `VideoClassifier.from_pretrained`, it never initializes a new head, because its predictions would be random. By
    default, `frames` and `side` (pixels) of clips are those of the model. At another shape, positions are interpolated by
    default. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(where)
    config = checkpoint.config
    checkpoint.refuse_detector()
    if config.model != "VideoClassifier" or config.classes is None:
        raise CheckpointError(
            f"{where} has no class head, so it predicts no classes. Fine-tune it first, e.g. with "
            f"vmae-lab finetune PARAMS --encoder {where}"
        )
    clip = checkpoint.reshaped(frames, side, positions)
    if config.readout == "flat" and clip.tokens != config.clip.tokens:
        raise CheckpointError(
            f"{where} has a head for the {config.clip.tokens} tokens of its own clips (readout 'flat'), not for {clip.tokens}. "
            "Leave out --frames and --side"
        )
    model = VideoClassifier(config.size, clip, config.classes, config.readout or "mean")
    load_weights(model, checkpoint.state, str(where))
    model.describe(config)
    return model.eval()


def read_names(file: Path, model: VideoClassifier, where: str) -> tuple[str, ...]:
    """Read the names of a model's classes, one per line in label order. Raises PredictionError, ListError."""
    try:
        names = [line.strip() for line in read_lines(file)]
    except OSError as error:
        raise PredictionError(f"cannot read the class names in {file}: {error.strerror}") from error
    while names and not names[-1]:
        names.pop()
    if len(names) != model.classes:
        raise PredictionError(
            f"{file} has {counted(len(names), 'line')}, but {where} has a head for {counted(model.classes, 'class')}. Give "
            "one name per class and line, in label order"
        )
    return tuple(names)


def names_of(model: VideoClassifier | ActionDetector) -> tuple[str, ...]:
    """Return the names of the classes in label order, or their numbers if the model has no names."""
    return model.class_names or tuple(map(str, range(model.classes)))


def sampling_of(model: nn.Module, stride: int | None = None, views: ViewSettings | None = None) -> tuple[int, ViewSettings]:
    """Return stride and views. By default they are those of the model's training, with 5 clips x 3 crops."""
    stride = stride or getattr(model, "stride", None) or STRIDE
    return stride, views or ViewSettings(sampling=getattr(model, "sampling", None) or "dense")


# ----------------------------------------------------------------------------------------------------------------------
# One video, several views


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of a video, float64 `(classes,)`, and the names of the classes."""

    video: str
    probabilities: np.ndarray
    classes: Sequence[str]

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes and their probabilities, in descending order."""
        return [(self.classes[label], float(self.probabilities[label])) for label in self.labels(count)]

    def labels(self, count: int) -> list[int]:
        """Return the labels of the most probable classes. Among equal probabilities, the lowest label is first."""
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    def table(self, count: int) -> pd.DataFrame:
        """Return the most probable classes: columns rank (from 1), label, class, probability."""
        labels = self.labels(count)
        return pd.DataFrame({
            "rank": range(1, len(labels) + 1), "label": labels, "class": [self.classes[label] for label in labels],
            "probability": self.probabilities[labels],
        })  # fmt: skip


def preprocess(
    video: str | Path, model: nn.Module, *, stride: int | None = None, views: ViewSettings | None = None
) -> Tensor:  # fmt: skip
    """Read the views of a video as clips for `model`: uint8 `(clips * crops, C, T, H, W)`, the crops of a clip together.

    `model` is a VideoClassifier, a VideoMAE or an encoder; it normalizes uint8 pixels itself. A clip takes every `stride`-th
    frame. By default, stride and sampling are those of the training. Raises VideoError.
    """
    stride, views = sampling_of(model, stride, views)
    clip = _clip_of(model)
    decoded = _decoders().read(_file(video), views.choose(clip.frames, stride), short_side_for(clip.side))
    return cut_views(to_tensor(decoded), clip.frames, clip.side, views.crops)


def predict(
    model: VideoClassifier, video: str | Path, *, stride: int | None = None, views: ViewSettings | None = None
) -> Prediction:  # fmt: skip
    """Predict the class of a video: softmax averaged over its views, as in the official test protocol.

    By default, views are 5 clips x 3 crops, with stride and sampling of the training. Raises VideoError, and PredictionError if
    scores are not finite.
    """
    clips = preprocess(video, model, stride=stride, views=views)
    return _prediction(str(video), mean_probabilities(model.eval(), clips), model)


def video_features(
    model: nn.Module, video: str | Path, *, stride: int | None = None, views: ViewSettings | None = None,
    layer: int | None = None, tokens: bool = False,
) -> Tensor:  # fmt: skip
    """Return the mean token of a video, averaged over its views: float32 `(D,)` on the CPU.

    With `tokens`, all tokens of each view: `(clips * crops, N, D)`, in the order of the token grid `(T', H', W')`. `layer` is
    a block of the encoder, from 1; the last one if None. `model` is a VideoMAE, a VideoClassifier or their encoder. As in
    `vmae-lab features`, a classifier's `fc_norm` is applied to the last block, and inner blocks are not normalized.

    Raises VideoError, and FeatureError if there is no such layer.
    """
    encoder: Any = model.encoder if isinstance(model, VideoMAE | VideoClassifier) else model
    norm = model.head.fc_norm if isinstance(model, VideoClassifier) else None
    layer = checked_layer(encoder, layer)
    clips = preprocess(video, model, stride=stride, views=views).to(next(model.parameters()).device)
    features = encode_clips(encoder.eval(), norm, clips, layer, tokens)  # (views, D), or (views, N, D) with `tokens`
    return (features if tokens else features.mean(0)).cpu()


def predict_videos(
    model: VideoClassifier, clips: VideoDataset, stride: int, views: ViewSettings
) -> Iterator[tuple[str, Prediction | VideoError]]:
    """Yield the name and the prediction of each video, or its error if it cannot be read. Raises PredictionError."""
    clip = model.clip
    model.eval()
    read = clips.videos(range(len(clips)), views.choose(clip.frames, stride), short_side_for(clip.side))
    for row, video in enumerate(read):
        name = clips.name(row)
        if isinstance(video, VideoError):
            yield name, video
        else:
            probabilities = mean_probabilities(model, cut_views(video, clip.frames, clip.side, views.crops))
            yield name, _prediction(name, probabilities, model)


# ----------------------------------------------------------------------------------------------------------------------
# Along a video


@dataclass(frozen=True)
class Timeline:
    """Predictions of windows along a video: starts and ends in seconds, float64 `(n,)`, probabilities `(n, classes)`."""

    video: str
    start_s: np.ndarray
    end_s: np.ndarray
    probabilities: np.ndarray
    classes: Sequence[str]

    def table(self, count: int) -> pd.DataFrame:
        """Return the most probable classes of each window: columns start_s, end_s, rank, label, class, probability."""
        parts = [
            Prediction(self.video, row, self.classes).table(count).assign(start_s=start, end_s=end)
            for start, end, row in zip(self.start_s, self.end_s, self.probabilities, strict=True)
        ]
        return pd.concat(parts, ignore_index=True)[["start_s", "end_s", "rank", "label", "class", "probability"]]

    def segments(self) -> pd.DataFrame:
        """Merge consecutive windows with the same most probable class: columns start_s, end_s, class, probability (mean).

        A segment ends where the next one starts, since windows may overlap.
        """
        top = self.probabilities.argmax(1)
        best = self.probabilities.max(1)
        firsts = [0, *(np.flatnonzero(np.diff(top)) + 1).tolist()]
        ends = [*firsts[1:], len(top)]
        return pd.DataFrame({
            "start_s": self.start_s[firsts], "end_s": [*self.start_s[firsts[1:]], self.end_s[-1]],
            "class": [self.classes[label] for label in top[firsts]],
            "probability": [best[first:end].mean() for first, end in zip(firsts, ends, strict=True)],
        })  # fmt: skip


def predict_along(
    model: VideoClassifier, clips: VideoDataset, row: int, every_s: float, stride: int, crops: int = 3
) -> Timeline:
    """Predict one window of a video every `every_s` seconds, averaged over `crops` crops.

    A window is one clip of the model: every `stride`-th frame. The first window starts with the video. Windows that would
    exceed its end are left out; if the video is shorter than a window, its last frame is repeated. PyAV decodes each frame
    once. At most a window and a chunk of frames are in memory. Times are computed with the mean frame rate.

    Raises VideoError, also if the frame rate is unknown, and PredictionError if scores are not finite.
    """
    clip = model.clip
    name = clips.name(row)
    file = clips.file(row)
    model.eval()
    chunks = clips.decoders.stream(file, short_side_for(clip.side))
    first = next(chunks)
    rate = first.info.fps
    if not rate:
        raise VideoError(
            file.path,
            "its frame rate is unknown, which windows in seconds need; convert it, e.g. with 'ffmpeg -i IN OUT.mp4'",
            first.info.codec,
        )
    frames = (to_tensor(decoded) for decoded in chain([first], chunks))
    starts: list[int] = []
    ends: list[int] = []
    probabilities: list[np.ndarray] = []
    for start, end, window in windows_along(frames, clip.frames, stride, hop=max(1, round(every_s * rate))):
        starts.append(start)
        ends.append(end)
        views = cut_views(window, clip.frames, clip.side, crops)
        probabilities.append(_prediction(name, mean_probabilities(model, views), model).probabilities)
    return Timeline(name, np.array(starts) / rate, np.array(ends) / rate, np.stack(probabilities), names_of(model))


def windows_along(chunks: Iterable[Tensor], frames: int, stride: int, hop: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the first frame of each window, the frame after its last one, and its pixels, uint8 `(C, frames, H, W)`.

    `chunks` are the consecutive frames of a video, uint8 `(C, n, H, W)`. Windows start `hop` frames apart. Frames that no later
    window needs are dropped.
    """
    span = (frames - 1) * stride + 1
    start = 0  # of the next window
    held: list[Tensor] = []  # frames in memory, from frame number `first` on
    first = 0
    for chunk in chunks:
        held += chunk.permute(1, 2, 3, 0).unbind()  # (H, W, C) each: the order in memory changes the last bits of resizing
        while first + len(held) >= start + span:
            window = held[start - first : start - first + span : stride]
            yield start, start + span, torch.stack(window).permute(3, 0, 1, 2)
            start += hop
        dropped = min(start - first, len(held))
        del held[:dropped]
        first += dropped
    if start == 0 and held:  # the video is shorter than a window
        window = [held[index] for index in Dense(frames, stride, 0.0)(len(held))]
        yield 0, len(held), torch.stack(window).permute(3, 0, 1, 2)


def predict_videos_along(
    model: VideoClassifier, clips: VideoDataset, every_s: float, stride: int, crops: int
) -> Iterator[tuple[str, Timeline | VideoError]]:
    """Yield the name of each video, and its `predict_along` or its error if it cannot be read. Raises PredictionError."""
    for row in range(len(clips)):
        try:
            yield clips.name(row), predict_along(model, clips, row, every_s, stride, crops)
        except VideoError as error:
            yield clips.name(row), error


# ----------------------------------------------------------------------------------------------------------------------
# Shared


@cache
def _decoders() -> Decoders:
    """Return the decoder process that all calls share. It starts with the first call."""
    return Decoders(VideoSettings())


def _file(video: str | Path) -> VideoFile:
    if is_url(video):
        raise VideoError(video, URL)
    return VideoFile(os.path.abspath(video))


def _clip_of(model: nn.Module) -> ClipShape:
    clip = getattr(model, "clip", None)
    if not isinstance(clip, ClipShape):
        raise TypeError(f"expected a VideoClassifier, a VideoMAE or an encoder, not a {type(model).__name__}")
    return clip


def _prediction(name: str, probabilities: np.ndarray, model: VideoClassifier) -> Prediction:
    """Return the prediction of a video. Raises PredictionError if it is not finite."""
    if not np.isfinite(probabilities).all():
        raise PredictionError(f"the model's scores of {name} are not finite; check whether its training diverged")
    return Prediction(name, probabilities, names_of(model))
