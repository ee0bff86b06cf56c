"""What can be read without an encoder. If a single frame tells the class, the data set tests no video model."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vmae_lab.data.augment import centre_crop
from vmae_lab.data.clips import Clips
from vmae_lab.data.evaluated import MissingVideos
from vmae_lab.data.sampling import Dense, Everything
from vmae_lab.data.video import VideoError
from vmae_lab.data.video.decoders import Choose
from vmae_lab.evaluation.metrics import top1
from vmae_lab.models.sizes import ModelSettings


def single_frame_accuracies(train: Clips, held_out: Clips, model: ModelSettings, stride: int) -> list[float]:
    """Top-1 of a ridge classifier on the pixels of one frame, for each frame, fitted on every training label: `(T,)`, %.

    Each frame of the video where all are equally long, else of its middle window.
    """
    shrink = max(1, model.side // 2)  # two thousand clips carry no more than this many pixels without over-fitting
    choose = Everything() if train.length else Dense(model.frames, stride, 0.5)
    fitted, seen = (_pixels(clips, range(len(clips)), choose, shrink) for clips in (train, held_out))
    return [
        _ridge_accuracy(_flat(fitted[:, :, t]), train.labels, _flat(seen[:, :, t]), held_out.labels)
        for t in range(fitted.shape[2])
    ]


def raw_pixel_accuracy(train: Clips, held_out: Clips, rows: np.ndarray, model: ModelSettings, stride: int) -> float:
    """Top-1 of a ridge classifier on all pixels of the middle window, fitted on the labelled rows alone, %."""
    choose = Dense(model.frames, stride, 0.5)
    fitted, seen = _pixels(train, rows, choose, model.side), _pixels(held_out, range(len(held_out)), choose, model.side)
    return _ridge_accuracy(_flat(fitted), train.labels[rows], _flat(seen), held_out.labels)


def _pixels(clips: Clips, rows: Sequence[int], choose: Choose, side: int) -> torch.Tensor:
    """Frames of some videos, their central square at `side`: uint8 `(n, C, T, side, side)`. Raises MissingVideos."""
    read = list(clips.videos(rows, choose, side))
    failed = {row: video for row, video in zip(rows, read, strict=True) if isinstance(video, VideoError)}
    if failed:
        raise MissingVideos(failed, len(rows))
    return torch.stack([centre_crop(video, side) for video in read])


def _flat(video: torch.Tensor) -> np.ndarray:
    """Pixels a row a clip: float32 `(n, everything else)`, from 0 to 1."""
    return video.flatten(1).numpy().astype(np.float32) / 255


def _ridge_accuracy(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(1, 6, 6)))
    return top1(classifier.fit(x, y).predict(test_x), test_y)
