"""timm's RandAugment for a whole clip. All frames get the same operations and strengths.

The results equal those of timm applied to each frame with the same seed, except for rounding in shears, translations and
rotations. With the recipe of VideoMAE V2, the results of 9 of 12 seeds were equal. Those of the others differed by one level in
at most 1.4e-4 of the values. This version is several times as fast:

- timm draws the operations once, not per frame.
- Operations that take most of the time work on all frames at once.
- Only the part of the clip that the following crop needs is computed.

Source: RandAugment (arXiv 1909.13719) as in timm.data.auto_augment, which applies Pillow's operations.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2.functional import adjust_sharpness

from vmae_lab.utils.seeding import library_draws

FILL = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)


class Box(NamedTuple):
    """A rectangle of pixels in a frame. `bottom` and `right` are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    def enlarged(self, margin: int, frame: "Box") -> "Box":
        """Return the box with a margin around it, as far as the frame reaches."""
        top, left = max(self.top - margin, 0), max(self.left - margin, 0)
        return Box(top, left, min(self.bottom + margin, frame.bottom), min(self.right + margin, frame.right))

    def cut(self, clip: np.ndarray, source: "Box") -> np.ndarray:
        """Return this part of a clip `(T, H, W, C)` that covers `source`."""
        rows = slice(self.top - source.top, self.bottom - source.top)
        return clip[:, rows, self.left - source.left : self.right - source.left]


class Operation(Protocol):
    """An operation with its strength. It computes only a part of the frame."""

    def source(self, target: Box, frame: Box) -> Box:
        """Return the part of the input that the part `target` of the output depends on."""

    def __call__(self, clip: np.ndarray, source: Box, target: Box) -> np.ndarray:
        """Compute the part `target` of the output from the part `source` of the input: uint8 `(T, H, W, C)` both."""


def rand_augment(clip: np.ndarray, configuration: str, seed: int, target: Box) -> np.ndarray:
    """Apply RandAugment to a clip and return the part `target` of the result: uint8 `(T, H, W, C)` -> `(T, h, w, C)`."""
    frame = Box(0, 0, *clip.shape[1:3])
    operations = draw_operations(configuration, (frame.right, frame.bottom), seed)
    # The last operation decides what the one before it has to compute, and so on.
    parts = [target]
    for operation in reversed(operations):
        parts.append(operation.source(parts[-1], frame))
    parts.reverse()
    clip = parts[0].cut(clip, frame)
    for operation, (source, part) in zip(operations, pairwise(parts), strict=True):
        clip = operation(clip, source, part)
    return clip


def draw_operations(configuration: str, size: tuple[int, int], seed: int) -> list[Operation]:
    """Return the operations that timm's RandAugment applies with this seed to a frame of this size (width, height)."""
    operations: list[Operation] = []

    def record(function: Callable[..., Any], image: "_MatrixRecorder", *strength: float, **options: Any) -> "_MatrixRecorder":
        if function in AFFINE:
            affine = function(image, *strength, **options)
            if affine is not None:  # a rotation by 0 degrees
                operations.append(affine)
        else:
            operations.append(_whole_clip_operation(function, strength))
        return image

    options = {"translate_const": int(min(size) * 0.45), "img_mean": FILL}
    with library_draws(seed):
        transform = auto_augment.rand_augment_transform(configuration, options)
        for operation in transform.ops:
            operation.aug_fn = partial(record, operation.aug_fn)
        transform(_MatrixRecorder(size))
    return operations


def _whole_clip_operation(function: Callable[..., Image.Image], strength: tuple[float, ...]) -> Operation:
    if function in POINTWISE:
        return LookUp(function, strength)
    if function is auto_augment.sharpness:
        return Sharpen(*strength)
    return FrameByFrame(lambda image: function(image, *strength), local=function in LOCAL)


# ----------------------------------------------------------------------------------------------------------------------
# Operations on colors

# The new value of a pixel's color depends on its old value only.
POINTWISE: set[Callable[..., Any]] = {
    auto_augment.brightness, auto_augment.invert, auto_augment.posterize, auto_augment.solarize, auto_augment.solarize_add,
}  # fmt: skip
# The new value of a pixel depends on its three colors only. Other operations depend on the mean or histogram of the frame.
LOCAL: set[Callable[..., Any]] = {auto_augment.color, auto_augment.desaturate}


class LookUp:
    """An operation that maps each of the 256 levels to another. Pillow computes the table."""

    def __init__(self, function: Callable[..., Image.Image], strength: tuple[float, ...]):
        levels = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3))
        self.table = np.asarray(function(Image.fromarray(levels[None].copy()), *strength))[0, :, 0].tobytes()

    def source(self, target: Box, frame: Box) -> Box:
        return target

    def __call__(self, clip: np.ndarray, source: Box, target: Box) -> np.ndarray:
        # bytes.translate is as fast as a table gets in Python, and faster than indexing with a clip.
        return np.frombuffer(bytearray(clip.tobytes()).translate(self.table), np.uint8).reshape(clip.shape)


class Sharpen:
    """Pillow's sharpness. torchvision's result is equal and twice as fast."""

    def __init__(self, factor: float):
        self.factor = factor

    def source(self, target: Box, frame: Box) -> Box:
        return target.enlarged(1, frame)

    def __call__(self, clip: np.ndarray, source: Box, target: Box) -> np.ndarray:
        frames = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2)
        return target.cut(adjust_sharpness(frames, self.factor).permute(0, 2, 3, 1).numpy(), source)


class FrameByFrame:
    """An operation of Pillow, applied to each frame."""

    def __init__(self, function: Callable[[Image.Image], Image.Image], local: bool):
        self.function = function
        self.local = local

    def source(self, target: Box, frame: Box) -> Box:
        return target if self.local else frame

    def __call__(self, clip: np.ndarray, source: Box, target: Box) -> np.ndarray:
        part = (target.left - source.left, target.top - source.top, target.right - source.left, target.bottom - source.top)
        return np.stack([np.asarray(self.function(Image.fromarray(frame)).crop(part)) for frame in clip])


# ----------------------------------------------------------------------------------------------------------------------
# Shears, translations and rotations

AFFINE: set[Callable[..., Any]] = {
    auto_augment.rotate, auto_augment.shear_x, auto_augment.shear_y, auto_augment.translate_x_rel, auto_augment.translate_y_rel,
    auto_augment.translate_x_abs, auto_augment.translate_y_abs,
}  # fmt: skip


class Affine:
    """Pillow's affine transform. Each output pixel is a weighted sum of up to 16 input pixels, or the fill color.

    `matrix` (a, b, c, d, e, f) maps the center of an output pixel to the input: x' = ax + by + c, y' = dx + ey + f.
    """

    def __init__(self, size: tuple[int, int], matrix: tuple[float, ...], resample: Image.Resampling, fill: tuple[int, ...]):
        self.frame = Box(0, 0, size[1], size[0])
        self.matrix = matrix
        self.resample = resample
        self.fill = fill

    def source(self, target: Box, frame: Box) -> Box:
        corners = self._positions(np.array([target.left, target.right - 1]), np.array([target.top, target.bottom - 1]))
        (left, right), (top, bottom) = ((math.floor(at.min()) - 1, math.floor(at.max()) + 3) for at in corners)
        # At least one pixel of the frame, also if all of `target` comes from outside.
        top = min(max(top, 0), frame.bottom - 1)
        left = min(max(left, 0), frame.right - 1)
        return Box(top, left, min(max(bottom, top + 1), frame.bottom), min(max(right, left + 1), frame.right))

    def __call__(self, clip: np.ndarray, source: Box, target: Box) -> np.ndarray:
        frames, height, width, _ = clip.shape
        # One row per input pixel with the colors of all frames, and a last row with the fill color.
        pixels = torch.empty(height * width + 1, frames * 3)
        pixels[:-1] = torch.from_numpy(_swap(clip.reshape(frames, -1, 3))).flatten(1)
        pixels[-1] = torch.tensor(self.fill).repeat(frames)
        indices, weights = self._neighbors(source, target)
        sums = functional.embedding_bag(indices, pixels, mode="sum", per_sample_weights=weights)
        if self.resample == Image.Resampling.BICUBIC:  # some of its weights are negative
            sums.clamp_(0, 255)
        levels = sums.numpy().astype(np.uint8)  # Pillow truncates, too
        return _swap(levels.reshape(-1, frames, 3)).reshape(frames, target.bottom - target.top, -1, 3)

    def _neighbors(self, source: Box, target: Box) -> tuple[Tensor, Tensor]:
        """Return the input pixels and their weights for each output pixel: int32 and float32 `(pixels, neighbors)`.

        The index of an input pixel counts within `source`. One past the last is the fill color, for pixels outside the frame.
        """
        xs, ys = self._positions(np.arange(target.left, target.right), np.arange(target.top, target.bottom))
        # The center of a pixel at the edge is at 0, so the frame begins at -0.5.
        outside = (xs < -0.5) | (xs >= self.frame.right - 0.5) | (ys < -0.5) | (ys >= self.frame.bottom - 0.5)
        columns, column_weights = self._interpolation(xs, source.left, source.right)
        rows, row_weights = self._interpolation(ys, source.top, source.bottom)
        indices = rows[:, None] * (source.right - source.left) + columns
        indices[..., outside] = source.area
        # The factor makes up for float32: without it, a sum of 99.99999 would be truncated to 99, not to 100.
        weights = row_weights[:, None] * (column_weights * np.float32(1 + 1e-6))
        indices, weights = (values.reshape(-1, outside.size).T for values in (indices, weights))
        return torch.from_numpy(np.ascontiguousarray(indices)), torch.from_numpy(np.ascontiguousarray(weights))

    def _positions(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map output pixels to the input, in which the center of the first pixel is at 0: x and y, `(rows, columns)` each."""
        a, b, c, d, e, f = self.matrix
        x, y = columns + 0.5, rows[:, None] + 0.5
        return a * x + (b * y + c - 0.5), d * x + (e * y + f - 0.5)

    def _interpolation(self, at: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbors of positions along one axis, from `start`, and their weights: `(neighbors, rows, columns)` each.

        Pixels at the edge stand for those beyond it.
        """
        whole = np.floor(at)
        t = (at - whole).astype(np.float32)
        if not t.any():  # at the centers of pixels, as along the columns of a horizontal shear
            first, weights = 0, [np.ones_like(t)]
        elif self.resample == Image.Resampling.BILINEAR:
            first, weights = 0, [1 - t, t]
        else:  # bicubic: the cubic with a = -1, as in Pillow's transforms
            u = 1 - t
            first, weights = -1, [-t * u * u, u * (1 + t - t * t), t * (1 + u - u * u), -u * t * t]
        neighbors = whole.astype(np.int32) + np.arange(first, first + len(weights), dtype=np.int32)[:, None, None]
        return neighbors.clip(start, stop - 1) - start, np.stack(weights)


def _swap(pixels: np.ndarray) -> np.ndarray:
    """Swap the first two axes: uint8 `(n, m, 3)` -> `(m, n, 3)`. Moving whole pixels is three times as fast as moving bytes."""
    return np.ascontiguousarray(np.ascontiguousarray(pixels).view("V3").swapaxes(0, 1)).view(np.uint8)


class _MatrixRecorder:
    """Stands for an image in timm's shears, translations and rotations, which call its methods with the matrix."""

    # Pillow's method computes the matrix and calls `transform`.
    rotate = Image.Image.rotate

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def copy(self) -> None:
        """Return no operation: Pillow's `rotate` only copies the image if the angle is 0."""

    def transform(self, size: tuple[int, int], method: int, matrix: tuple[float, ...], resample: Any, fillcolor: Any) -> Affine:
        return Affine(size, matrix, resample, fillcolor)
