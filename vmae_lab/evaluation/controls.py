"""What can be read without an encoder. If a single frame tells the class, the data set tests no video model."""

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vmae_lab.data.augment import centre_crop
from vmae_lab.data.resident import ResidentClips
from vmae_lab.data.sampling import Dense, Exactly
from vmae_lab.data.video.decoders import Choose
from vmae_lab.evaluation.metrics import top1
from vmae_lab.models.sizes import ModelSettings


def single_frame_accuracies(train: ResidentClips, held_out: ResidentClips, side: int) -> list[float]:
    """Top-1 of a ridge classifier on the pixels of one frame, for each frame, fitted on every training label: `(T,)`, %."""
    shrink = max(1, side // 2)  # two thousand clips carry no more than this many pixels without over-fitting
    return [
        _ridge_accuracy(
            _pixels(train, Exactly((t,)), shrink), train.labels, _pixels(held_out, Exactly((t,)), shrink), held_out.labels
        )
        for t in range(train.length)
    ]


def raw_pixel_accuracy(
    train: ResidentClips, held_out: ResidentClips, rows: np.ndarray, model: ModelSettings, stride: int
) -> float:
    """Top-1 of a ridge classifier on all pixels of the middle window, fitted on the labelled rows alone, %."""
    window = Dense(model.frames, stride, 0.5)
    fitted = _pixels(train, window, model.side)[rows]
    return _ridge_accuracy(fitted, train.labels[rows], _pixels(held_out, window, model.side), held_out.labels)


def _pixels(clips: ResidentClips, window: Choose, side: int) -> np.ndarray:
    """Pixels of a window at `side`, a row a clip: float32 `(n, T*side*side*3)`."""
    video = torch.stack([clips.video(index, window) for index in range(len(clips))])
    return centre_crop(video, side).reshape(len(clips), -1).numpy().astype(np.float32) / 255


def _ridge_accuracy(x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(1, 6, 6)))
    return top1(classifier.fit(x, y).predict(test_x), test_y)
