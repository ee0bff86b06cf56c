"""Baselines on raw pixels, without an encoder. If single frames reveal the class, the data set does not test motion."""

import numpy as np
import torch

from vmae_lab.data.decoding.decoders import Choose
from vmae_lab.data.frame_sampling import Dense, Exactly
from vmae_lab.data.memmap_dataset import MemmapDataset
from vmae_lab.data.transforms import centre_crop
from vmae_lab.evaluation.classification import top1
from vmae_lab.evaluation.probes import ridge_answers
from vmae_lab.models.sizes import ModelSettings
from vmae_lab.utils.shapes import Side, height_width

MOST_PIXELS = 16  # longer side of a single frame; with more pixels, the classifier overfits and takes minutes


def single_frame_side(side: Side) -> tuple[int, int]:
    """Return height and width of a single frame: half of those of a clip, and at most MOST_PIXELS."""
    longer = max(height_width(side))
    shrunk = max(1, min(longer // 2, MOST_PIXELS))
    height, width = (max(1, round(length * shrunk / longer)) for length in height_width(side))
    return height, width


def single_frame_accuracies(train: MemmapDataset, held_out: MemmapDataset, side: Side) -> list[float]:
    """Return top-1 in percent of a ridge classifier on one frame, per frame: `(T,)`. It is fitted to all training labels."""
    small = single_frame_side(side)
    return [
        _ridge_accuracy(
            _pixels(train, Exactly((t,)), small), train.labels, _pixels(held_out, Exactly((t,)), small), held_out.labels
        )
        for t in range(train.length)
    ]


def raw_pixel_accuracy(
    train: MemmapDataset, held_out: MemmapDataset, rows: np.ndarray, model: ModelSettings, stride: int
) -> float:
    """Return top-1 in percent of a ridge classifier on the pixels of the middle window, fitted to the labeled rows."""
    window = Dense(model.frames, stride, 0.5)
    labelled = train.subset(rows.tolist())
    return _ridge_accuracy(
        _pixels(labelled, window, model.side), labelled.labels, _pixels(held_out, window, model.side), held_out.labels
    )


def _pixels(clips: MemmapDataset, window: Choose, side: Side) -> torch.Tensor:
    """Return the pixels of a window at `side`, one row per clip: float32 `(n, T*height*width*3)`."""
    video = torch.stack([clips.video(index, window) for index in range(len(clips))])
    return centre_crop(video, side).reshape(len(clips), -1).to(torch.float32) / 255


def _ridge_accuracy(x: torch.Tensor, y: np.ndarray, test_x: torch.Tensor, test_y: np.ndarray) -> float:
    return top1(ridge_answers(x, y, test_x, np.logspace(1, 6, 6)), test_y)
