"""Crops of whole clips: the same for all frames."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

SCALES = (1.0, 0.875, 0.75, 0.66)


def multi_scale_crop(video: Tensor, side: int, rng: np.random.Generator, scales: Sequence[float] = SCALES) -> Tensor:
    """One multi-scale corner or centre crop, resized: uint8 `(..., H, W)` -> `(..., side, side)` (METHOD: augmentation).

    Height and width are drawn from `scales` of the short side, at most one step apart in the list; the place is one of
    the four corners and the centre.
    """
    height, width = video.shape[-2:]
    first = int(rng.integers(len(scales)))
    second = int(np.clip(first + rng.integers(-1, 2), 0, len(scales) - 1))
    tall, wide = (max(1, round(min(height, width) * scales[i])) for i in (first, second))
    down, right = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))[rng.integers(5)]
    top, left = int((height - tall) * down), int((width - wide) * right)
    return _resize(video[..., top : top + tall, left : left + wide], side)


def centre_crop(video: Tensor, side: int) -> Tensor:
    """The largest square in the middle, resized: uint8 `(..., H, W)` -> `(..., side, side)`."""
    short = min(video.shape[-2:])
    return _resize(functional.center_crop(video, [short, short]), side)


def _resize(video: Tensor, side: int) -> Tensor:
    if video.shape[-2:] == (side, side):
        return video
    return functional.resize(video.contiguous(), [side, side], antialias=True)


def channels_first(frames: np.ndarray) -> Tensor:
    """Decoded frames to a clip: uint8 `(..., T, H, W, C)` -> `(..., C, T, H, W)`."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -4)))
